"""The pictures on which an exported model is held against the trained one, or learns the range of its layers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.data import shapes
from unetdist.data.decode import PICTURE_SUFFIXES, Pixels
from unetdist.data.image_file import read_file, read_image
from unetdist.data.loader import DataConfig, open_data, open_reader
from unetdist.data.samples import Samples
from unetdist.errors import DataError
from unetdist.model.inference import resize_area
from unetdist.model.saved_model import SavedModel

NUM_SHAPES = 8


class Picture(NamedTuple):
    """Image (1, C, H, W) uint8 as the network sees it; mask (1, H, W) uint8 of class indices, where there is one."""

    image: Tensor
    mask: Tensor | None


def find_pictures(
    saved: SavedModel, model_folder: Path, location: str | None, *, limit: int
) -> tuple[str, list[Picture]]:
    """The first `limit` pictures, and what they are: of `location`, else of the run's validation set, else drawn.

    Args:
        saved: The model, whose channels and `resize` they are given.
        model_folder: RUN/best, beside which the run's settings lie.
        location: Shards (path or URL), an image, or a folder of images.
        limit: How many at most.

    Raises:
        DataError: If `location` holds no picture, or one that cannot be read.
    """
    if location is not None:
        return location, list(islice(_read(saved, location), limit))
    if validation := _validation_of(model_folder.parent):
        try:
            return f"{validation} (data.val of the run)", list(islice(_read(saved, validation), limit))
        except (DataError, OSError) as error:
            logger.warning("the run's data.val cannot be read: %s", error)
    return "drawn shapes; give --check for real pictures", [_drawn(saved, index) for index in range(NUM_SHAPES)]


def _read(saved: SavedModel, location: str) -> Iterator[Picture]:
    path = Path(location)
    if path.is_file():
        return iter([_from_file(saved, path)])
    if path.is_dir() and not (path / "manifest.json").exists():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise DataError("no images and no shards in it; give another folder.", source=location)
        return _from_files(saved, files)
    return _from_shards(saved, location)


def _from_files(saved: SavedModel, files: Sequence[Path]) -> Iterator[Picture]:
    """Those that can be read; the others are named. `DataError` where none can."""
    found = 0
    for file in files:
        try:
            picture = _from_file(saved, file)
        except DataError as error:
            logger.warning("left out: %s", error)
            continue
        found += 1
        yield picture
    if not found:
        raise DataError(f"none of its {len(files)} images can be read; give another folder.", source=files[0].parent)


def _from_file(saved: SavedModel, file: Path) -> Picture:
    try:
        image = read_image(read_file(file), saved.model.config.in_channels, saved.image_range)
    except DataError as error:
        raise DataError(str(error), source=file) from None
    return _seen(saved, image, None, saved.resize)


def _from_shards(saved: SavedModel, location: str) -> Iterator[Picture]:
    cfg = DataConfig(train=location)
    folder, manifest = open_data(cfg, location)
    if manifest.palette_records != tuple(saved.palette.to_records()):
        raise DataError("has other classes than the model; give shards of its own labels.", source=location)
    samples = Samples(
        open_reader(cfg, folder, manifest),
        channels=saved.model.config.in_channels,
        num_classes=saved.palette.num_classes,
    )
    resize = saved.resize if manifest.resize != saved.resize else None
    return (_seen(saved, *samples.load(index), resize) for index in range(manifest.num_samples))


def _seen(saved: SavedModel, image: Pixels, mask: Pixels | None, resize: tuple[int, int] | None) -> Picture:
    """A picture at the size that the network was trained at."""
    there = rearrange(torch.from_numpy(image.copy()), "h w c -> 1 c h w").contiguous()
    target = None if mask is None else torch.from_numpy(mask.copy())[None]
    if resize is None:
        return Picture(there, target)
    width, height = resize
    there = resize_area(there, height=height, width=width).round().to(torch.uint8)
    return Picture(there, None if target is None else nearest(target, (height, width)))


def _drawn(saved: SavedModel, index: int) -> Picture:
    size = (96, 128) if saved.resize is None else (max(16, saved.resize[1]), max(16, saved.resize[0]))
    image = torch.from_numpy(shapes.draw(index, seed=0, size=size)[0])
    planes = [channel % 3 for channel in range(saved.model.config.in_channels)]
    return Picture(rearrange(image, "h w c -> 1 c h w")[:, planes].contiguous(), None)


def nearest(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W) or (1, C, H, W) uint8 at another size, no value mixed with its neighbour's."""
    four = pixels if pixels.ndim == 4 else pixels[:, None]
    return F.interpolate(four, size, mode="nearest-exact").view(*pixels.shape[:-2], *size)


def _validation_of(run: Path) -> str | None:
    """Where the run's settings say that its validation set is."""
    file = run / "config.yaml"
    data = settings.read_yaml(file).get("data") if file.is_file() else None
    location = data.get("val") if isinstance(data, Mapping) else None
    return location if isinstance(location, str) else None
