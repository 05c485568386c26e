"""The pictures that every contender reads: JPEGs of the user or drawn shapes, with masks as PNGs of class indices."""

import io
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.data_contenders import BRIGHT, CELL_PX, DARK, TINT, UNFILTERED_MASKS
from unetdist.cli.logs import logger, progress
from unetdist.data import shapes
from unetdist.data.labels import Label, Palette
from unetdist.data.labels.masks import read_mask
from unetdist.data.shards import encode_mask
from unetdist.errors import ConfigError
from unetdist.sharding.sources import from_folders

EXIF_ORIENTATION = 274

# Drawn pictures differ enough from one another; more of them are copies under other names.
NUM_SHAPES = 100

# Classes of drawn pictures, of which most do not occur: as many as CamVid has.
NUM_CLASSES = 12


@dataclass(frozen=True)
class Size:
    """Width and height in pixels; zeros keep each picture's own bytes and size."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" if self.width else "original"


def parse_case(text: str) -> tuple[Size, int]:
    """WxH:CROP or original:CROP."""
    found = re.fullmatch(r"(?:([1-9]\d*)x([1-9]\d*)|original):([1-9]\d*)", text)
    if found is None:
        raise ArgumentTypeError(f"invalid WxH:CROP value: {text!r}; use 480x360:256 or original:512")
    size, crop = Size(int(found[1] or 0), int(found[2] or 0)), int(found[3])
    if size.width and crop > min(size.width, size.height):
        raise ArgumentTypeError(f"the crop {crop} does not fit in {size}; use 480x360:256")
    return size, crop


def add_pictures(parser: ArgumentParser) -> None:
    """--images, --masks and --labels."""
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="your pictures (default: drawn shapes)")
    add("--masks", type=Path, metavar="DIR", help="their masks (default: drawn masks)")
    add("--labels", type=Path, metavar="FILE", help="the classes of --masks")


def palette_of(args: Namespace) -> Palette:
    """The classes; drawn pictures have as many as CamVid, of which most do not occur."""
    if args.masks and not (args.images and args.labels):
        raise ConfigError("--masks needs --images and --labels; give all three, or leave --masks out.")
    if args.masks:
        return Palette.read(args.labels)
    labels = shapes.PALETTE.labels
    spare = range(len(labels), NUM_CLASSES)
    return Palette((*labels, *(Label(index, f"spare{index}", (index, 0, 0), index) for index in spare)))


def write_pictures(folder: Path, args: Namespace, size: Size, num_samples: int) -> None:
    """Write images/, masks/ (also without PNG's filters) and Labels.txt, unless an earlier run did.

    A small set is repeated under other names until an epoch is so long that its start does not count.
    """
    done, stamp = folder / ".complete", f"{args.images} {args.masks} {size} {num_samples}"
    if done.exists() and done.read_text(encoding="utf-8") == stamp:
        return
    if folder.exists():
        raise ConfigError(f"--work: {folder} holds other pictures; give another folder, or remove it.")
    for name in ("images", "masks", UNFILTERED_MASKS):
        (folder / name).mkdir(parents=True)
    palette = palette_of(args)
    written: list[tuple[bytes, bytes, bytes]] = []
    with progress(f"writing pictures of {size}", num_samples) as bar:
        for image, mask in _pairs(args, palette, size):
            written.append((image, _save(Image.fromarray(mask), "PNG"), encode_mask(mask)))
            bar.advance()
            if len(written) == num_samples:
                break
    if not written:
        raise ConfigError(f"--images ({args.images}) has no usable JPEG; give a folder of JPEG files.")
    for number in range(num_samples):
        image, plain, unfiltered = written[number % len(written)]
        (folder / "images" / f"{number:06d}.jpg").write_bytes(image)
        (folder / "masks" / f"{number:06d}.png").write_bytes(plain)
        (folder / UNFILTERED_MASKS / f"{number:06d}.png").write_bytes(unfiltered)
    labels = sorted((label.index, label) for label in palette.labels if label.index is not None)
    lines = [f"{index} {' '.join(map(str, label.color))} {label.name}\n" for index, label in labels]
    (folder / "Labels.txt").write_text("".join(["id r g b name\n", *lines]), encoding="utf-8")
    done.write_text(stamp, encoding="utf-8")


def _pairs(args: Namespace, palette: Palette, size: Size) -> Iterator[tuple[bytes, np.ndarray]]:
    """JPEG file and class indices of each picture."""
    if args.images is None:
        for number in range(NUM_SHAPES):
            image, mask = shapes.draw(number, seed=0, size=(size.height, size.width))
            yield _save(Image.fromarray(image), "JPEG", quality=90, subsampling="4:2:0"), mask
    elif args.masks is not None:
        source = from_folders(args.images, args.masks)
        for sample in source.samples:
            data, mask_data = source.reader.read(sample)
            yield _fitted(data, read_mask(mask_data, palette).mask, size)
    else:
        for number, path in enumerate(sorted(args.images.rglob("*"))):
            if path.suffix.lower() not in (".jpg", ".jpeg"):
                continue
            with Image.open(path) as image:
                # Programs disagree about turned pictures, so their masks would not fit for everybody.
                if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                    logger.warning("%s is left out: its EXIF data turns it", path)
                    continue
                height, width = image.height, image.width
            # Drawn small and enlarged: a mask of a camera's picture has few edges too.
            drawn = shapes.draw(number, seed=0, size=(max(16, height // 8), max(16, width // 8)))[1]
            mask = Image.fromarray(drawn).resize((width, height), Image.Resampling.NEAREST)
            yield _fitted(path.read_bytes(), np.asarray(mask), size)


def _fitted(data: bytes, mask: np.ndarray, size: Size) -> tuple[bytes, np.ndarray]:
    """JPEG and classes, scaled to cover the size and cut; the file's own bytes if it has the size already."""
    image = Image.open(io.BytesIO(data))
    if image.format == "JPEG" and image.mode == "RGB" and (not size.width or image.size == (size.width, size.height)):
        return data, mask
    width, height = (size.width, size.height) if size.width else image.size
    scale = max(width / image.width, height / image.height)
    scaled = (round(image.width * scale), round(image.height * scale))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    box = (left, top, left + width, top + height)
    image = image.convert("RGB").resize(scaled, Image.Resampling.BICUBIC).crop(box)
    classes = Image.fromarray(mask).resize(scaled, Image.Resampling.NEAREST).crop(box)
    return _save(image, "JPEG", quality=90, subsampling="4:2:0"), np.asarray(classes)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_test_card(folder: Path, size: Size, num_pictures: int = 64) -> None:
    """Write a data set that gives away any mistake of a loader, in the same layout; kept if it is there.

    Each picture is a random board of dark and bright cells, and the mask is 1 on bright cells. Red grows and blue
    fades from left to right, so that a crop shows where it was cut and whether it was flipped.
    """
    labels = folder / "Labels.txt"  # Written last.
    if labels.exists():
        return
    for name in ("images", "masks", UNFILTERED_MASKS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(-TINT, TINT, size.width)
    for number in range(num_pictures):
        rng = np.random.default_rng(number)
        cells = rng.integers(0, 2, (-(-size.height // CELL_PX), -(-size.width // CELL_PX)), dtype=np.uint8)
        mask = cells.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)[: size.height, : size.width]
        luma = np.where(mask, BRIGHT, DARK)
        # Red and blue weigh 0.299 and 0.114 in luma; green makes up for their change.
        image = np.stack([luma + ramp, luma - (0.299 - 0.114) / 0.587 * ramp, luma - ramp], axis=-1)
        picture = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
        picture.save(folder / "images" / f"{number:06d}.jpg", quality=95, subsampling="4:2:0")
        Image.fromarray(mask).save(folder / "masks" / f"{number:06d}.png")
        (folder / UNFILTERED_MASKS / f"{number:06d}.png").write_bytes(encode_mask(mask))
    labels.write_text("id r g b name\n0 0 0 0 dark\n1 255 255 255 bright\n", encoding="utf-8")
