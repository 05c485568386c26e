"""Loads the images on which an exported model is compared with the trained one, or calibrated."""

from collections.abc import Iterator, Mapping
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


class CheckImage(NamedTuple):
    """Image (1, C, H, W) uint8 at the network's size, and its mask (1, H, W) uint8 of class indices, if it has one."""

    image: Tensor
    mask: Tensor | None


def find_check_images(
    saved: SavedModel, model_folder: Path, location: str | None, *, limit: int
) -> tuple[str, list[CheckImage]]:
    """Load up to `limit` images, and describe their origin.

    They are those of `location`; without one, of the run's validation set; if that cannot be read, drawn shapes.

    Args:
        saved: the model, whose channels and `resize` the images get.
        model_folder: RUN/best; the run's settings are read from RUN.
        location: shards (path or URL), an image, or a folder of images.
        limit: largest number of images.

    Raises:
        DataError: `location` has no image that can be read.
    """
    if location is not None:
        return location, list(islice(_read(saved, location), limit))
    if validation := _validation_of(model_folder.parent):
        try:
            return f"{validation} (data.val of the run)", list(islice(_read(saved, validation), limit))
        except (DataError, OSError) as error:
            logger.warning("the run's data.val cannot be read: %s", error)
    return "drawn shapes; give --check for real images", [_drawn(saved, index) for index in range(NUM_SHAPES)]


def _validation_of(run: Path) -> str | None:
    file = run / "config.yaml"
    data = settings.read_yaml(file).get("data") if file.is_file() else None
    location = data.get("val") if isinstance(data, Mapping) else None
    return location if isinstance(location, str) else None


def _read(saved: SavedModel, location: str) -> Iterator[CheckImage]:
    path = Path(location)
    if path.is_file():
        return _from_files(saved, [path])
    if path.is_dir() and not (path / "manifest.json").exists():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise DataError("no images and no shards in it; give another folder.", source=location)
        return _from_files(saved, files)
    return _from_shards(saved, location)


def _from_files(saved: SavedModel, files: list[Path]) -> Iterator[CheckImage]:
    """Skip what cannot be read with a warning; raise the last reason if nothing can be read."""
    problem = None
    found = False
    for file in files:
        try:
            image = read_image(read_file(file), saved.model.config.in_channels, saved.image_range)
        except DataError as error:
            problem = DataError(str(error), source=file)
            logger.warning("skipped: %s", problem)
            continue
        found = True
        yield _at_training_size(image, None, saved.resize)
    if problem and not found:
        raise problem


def _from_shards(saved: SavedModel, location: str) -> Iterator[CheckImage]:
    cfg = DataConfig(train=location)
    folder, manifest = open_data(cfg, location)
    # Masks of other classes would be compared index by index, without any sense.
    if manifest.palette_records != tuple(saved.palette.to_records()):
        raise DataError("has other classes than the model; give shards of its own labels.", source=location)
    reader = open_reader(cfg, folder, manifest)
    samples = Samples(reader, channels=saved.model.config.in_channels, num_classes=saved.palette.num_classes)
    # Shards that were resized already must not be resized a second time.
    resize = saved.resize if manifest.resize != saved.resize else None
    return (_at_training_size(*samples.load(index), resize) for index in range(manifest.num_samples))


def _at_training_size(image: Pixels, mask: Pixels | None, resize: tuple[int, int] | None) -> CheckImage:
    pixels = rearrange(torch.from_numpy(image.copy()), "h w c -> 1 c h w").contiguous()
    target = None if mask is None else torch.from_numpy(mask.copy())[None]
    if resize is None:
        return CheckImage(pixels, target)
    width, height = resize
    pixels = resize_area(pixels, height=height, width=width).round().to(torch.uint8)
    return CheckImage(pixels, None if target is None else nearest(target, (height, width)))


def _drawn(saved: SavedModel, index: int) -> CheckImage:
    size = (96, 128) if saved.resize is None else (max(16, saved.resize[1]), max(16, saved.resize[0]))
    image = torch.from_numpy(shapes.draw(index, seed=0, size=size)[0])
    planes = [channel % 3 for channel in range(saved.model.config.in_channels)]
    return CheckImage(rearrange(image, "h w c -> 1 c h w")[:, planes].contiguous(), None)


def nearest(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (1, H, W) or (1, C, H, W) uint8 without mixing the values of neighbours."""
    four = pixels if pixels.ndim == 4 else pixels[:, None]
    return F.interpolate(four, size, mode="nearest-exact").view(*pixels.shape[:-2], *size)
