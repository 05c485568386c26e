"""The pictures that everybody loads: a user's own (or the built-in shapes), as JPEG, at the size asked for.

They are written once to a folder, with masks as PIL saves class indices, and repeated under other names until an epoch
is long enough that its start does not count.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.peers.protocol import UNFILTERED_MASKS
from unetdist.cli.logs import progress
from unetdist.data import shapes
from unetdist.data.labels import Palette
from unetdist.data.labels.masks import read_mask
from unetdist.data.shards import encode_mask
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import from_folders

JPEG_QUALITY = 90
NUM_SHAPES = 100
"""Built-in pictures drawn; as many as differ enough from one another."""

Pair = tuple[Image.Image, bytes | None, np.ndarray]
"""Image, its file where that is a JPEG, and class indices."""


@dataclass(frozen=True)
class Case:
    """Size of the pictures and of the crops."""

    width: int
    height: int
    crop: int

    def __post_init__(self) -> None:
        if not 0 < self.crop <= min(self.width, self.height):
            raise ConfigError(
                f"--cases: the crop {self.crop} must fit in {self.width}x{self.height}; use 480x360:256."
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}:{self.crop}"


class Pictures:
    """Image and mask by number, from folders or drawn."""

    def __init__(self, images: Path | None, masks: Path | None, labels: Path | None) -> None:
        """`ConfigError` unless all three are given, or none (the built-in shapes)."""
        given = [path is not None for path in (images, masks, labels)]
        if any(given) and not all(given):
            raise ConfigError(
                "--images, --masks and --labels go together; give all three, or none for the shapes."
            )
        self.source = from_folders(images, masks) if images and masks else None
        self.palette = Palette.read(labels) if labels else shapes.PALETTE
        self.name = str(images) if images else "shapes"

    def __len__(self) -> int:
        return len(self.source.samples) if self.source else NUM_SHAPES

    def read(self, number: int, case: Case) -> Pair:
        """A picture; shapes are drawn at the size of the case."""
        if self.source is None:
            image, mask = shapes.draw(number, seed=0, size=(case.height, case.width))
            return Image.fromarray(image), None, mask
        sample = self.source.samples[number]
        data, mask_data = self.source.reader.read(sample)
        try:
            picture = Image.open(io.BytesIO(data))
            picture.load()
        except OSError as error:
            raise DataError(f"cannot be read ({error}); replace the file.", source=sample.image) from None
        is_plain = picture.format == "JPEG" and picture.mode == "RGB" and "progressive" not in picture.info
        return picture.convert("RGB"), data if is_plain else None, read_mask(mask_data, self.palette).mask


def write_pictures(folder: Path, pictures: Pictures, case: Case, *, num_samples: int) -> None:
    """Write images/, masks/ (also without PNG's filters) and Labels.txt; what a former run completed is kept."""
    done = folder / ".complete"
    stamp = f"{pictures.name} {len(pictures)} {case} {num_samples}"
    if done.exists():
        if done.read_text(encoding="utf-8") == stamp:
            return
        raise ConfigError(f"--work: {folder} holds other pictures; give another folder, or remove it.")
    for name in ("images", "masks", UNFILTERED_MASKS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    unique = min(len(pictures), num_samples)
    with progress(f"writing pictures of {case.width}x{case.height}", unique) as bar:
        for number in range(unique):
            image, classes = _encoded(*pictures.read(number, case), case)
            mask, unfiltered = _save(Image.fromarray(classes), "PNG"), encode_mask(classes)
            for copy in range(number, num_samples, unique):
                (folder / "images" / f"{copy:06d}.jpg").write_bytes(image)
                (folder / "masks" / f"{copy:06d}.png").write_bytes(mask)
                (folder / UNFILTERED_MASKS / f"{copy:06d}.png").write_bytes(unfiltered)
            bar.advance()
    labels = [label for label in pictures.palette.labels if label.index is not None]
    lines = [f"{label.index} {' '.join(map(str, label.color))} {label.name}\n" for label in labels]
    lines.sort(key=lambda line: int(line.split()[0]))
    (folder / "Labels.txt").write_text("".join(["id r g b name\n", *lines]), encoding="utf-8")
    done.write_text(stamp, encoding="utf-8")


def _encoded(
    image: Image.Image, data: bytes | None, mask: np.ndarray, case: Case
) -> tuple[bytes, np.ndarray]:
    """JPEG and classes of a pair at the size of the case: scaled until it covers it, then cut from the middle."""
    classes = Image.fromarray(mask)
    if image.size != (case.width, case.height):
        scale = max(case.width / image.width, case.height / image.height)
        size = (round(image.width * scale), round(image.height * scale))
        left, top = (size[0] - case.width) // 2, (size[1] - case.height) // 2
        box = (left, top, left + case.width, top + case.height)
        image = image.resize(size, Image.Resampling.BICUBIC).crop(box)
        classes = classes.resize(size, Image.Resampling.NEAREST).crop(box)
        data = None
    return data or _save(image, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0"), np.asarray(classes)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
