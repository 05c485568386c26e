"""Checks that an exported model gives what the trained one gives, at several sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from unetdist.data import shapes
from unetdist.data.config import DataConfig
from unetdist.data.decode import PICTURE_SUFFIXES, Pixels
from unetdist.data.image_file import read_file, read_image
from unetdist.data.loader import open_data, open_reader
from unetdist.data.samples import Samples
from unetdist.errors import DataError
from unetdist.evaluation.metrics import confusion_matrix, mean_iou
from unetdist.model.inference import Predict, resize_area
from unetdist.model.saved_model import SavedModel
from unetdist.predict.export.graph import Precision

# Largest difference of fp32 logits, as a fraction of an image's largest logit (at least 1).
TOLERANCE = 1e-4

# Largest loss of mIoU in the other formats; without masks, largest fraction of pixels of another class. Their rounding
# grows with the values inside a network, not with its logits, so bounds on logits would refuse barely trained networks.
MIOU_LOSS: dict[Precision, float] = {"fp16": 0.002, "int8": 0.01}
OTHER_CLASS: dict[Precision, float] = {"fp16": 0.005, "int8": 0.02}

NUM_SHAPES = 8


class CheckImage(NamedTuple):
    """Image (1, C, H, W) uint8 at the network's size, and its mask (1, H, W) uint8 of class indices, if it has one."""

    image: Tensor
    mask: Tensor | None


@dataclass
class Agreement:
    """The comparison on images of one kind of size."""

    label: str
    num_images: int = 0
    num_pixels: int = 0
    num_other: int = 0
    """Pixels whose class differs, except ties: both logits are equal in the trained model within the tolerance."""
    apart: float | None = None
    """Largest difference of two logits, as a fraction of the image's largest (at least 1); None if classes came out."""
    confusions: Tensor | None = None
    """(2, num_classes, num_classes): confusion matrix of the trained and of the exported model, if there are masks."""

    def mious(self) -> list[float]:
        """MIoU of the trained and of the exported model; empty without masks."""
        if self.confusions is None:
            return []
        return [float(mean_iou(np.diag(each), each.sum(1), each.sum(0))) for each in self.confusions.numpy()]

    def holds(self, precision: Precision) -> bool:
        """Whether the differences are as small as that precision allows."""
        if precision == "fp32":
            return (self.apart or 0.0) <= TOLERANCE and not self.num_other  # false for NaN
        mious = self.mious()
        if not mious or np.isnan(mious).any():
            return self.num_other <= OTHER_CLASS[precision] * self.num_pixels
        return mious[0] - mious[1] <= MIOU_LOSS[precision]


@torch.inference_mode()
def compare(trained: Predict, exported: Predict, images: Sequence[CheckImage]) -> list[Agreement]:
    """Compare both models on the images at their own size, cropped in pairs, and enlarged.

    `trained` gives logits, `exported` logits or class indices (B, H, W).
    """
    found: dict[str, Agreement] = {}
    for check_image in images:
        for label, (image, mask) in _sizes_of(check_image):
            _count(found.setdefault(label, Agreement(label)), trained(image), exported(image), mask)
    return list(found.values())


def _sizes_of(check_image: CheckImage) -> Iterator[tuple[str, CheckImage]]:
    image, mask = check_image
    height, width = image.shape[-2:]
    yield "own size", check_image
    # Odd sides cannot be halved evenly, and two images show that the batch is free too.
    part = (..., slice(0, (height // 2) | 1), slice(0, (2 * width // 3) | 1))
    images = torch.cat([image[part], image.flip(-1)[part]])
    yield "odd parts", CheckImage(images, None if mask is None else torch.cat([mask[part], mask.flip(-1)[part]]))
    size = (3 * height // 2, 3 * width // 2)
    yield "1.5 times", CheckImage(_nearest(image, size), None if mask is None else _nearest(mask, size))


def _count(agreement: Agreement, logits: Tensor, result: Tensor, mask: Tensor | None) -> None:
    largest = max(1.0, float(logits.abs().max()))
    pred = logits.argmax(1)
    other = result.long() if result.ndim == 3 else result.argmax(1)
    if result.ndim == 4:
        apart = float((logits - result).abs().max()) / largest
        agreement.apart = float(np.maximum(agreement.apart or 0.0, apart))  # keeps NaN
    gap = logits.gather(1, pred[:, None]) - logits.gather(1, other[:, None])
    agreement.num_images += len(logits)
    agreement.num_pixels += pred.numel()
    # Rounding decides ties, so either class is right. A gap that is not a number is no tie.
    agreement.num_other += int(((pred != other) & ~(gap[:, 0] <= 2 * TOLERANCE * largest)).sum())
    if mask is not None:
        both = torch.stack([confusion_matrix(classes, mask, logits.shape[1]) for classes in (pred, other)])
        agreement.confusions = both if agreement.confusions is None else agreement.confusions + both


def agreement_table(agreements: Sequence[Agreement], *, precision: Precision, origin: str) -> Table:
    """Show the comparison, one row per size; `origin` describes where the images come from."""
    bound = f"apart {TOLERANCE:g} at most, and no other pixels"
    if precision != "fp32":
        loss, other = MIOU_LOSS[precision], OTHER_CLASS[precision]
        bound = f"mIoU lower by {loss:g} at most, or, without masks, {other:.1%} of pixels other"
    table = Table(
        "images",
        title=f"exported ({precision}) and trained model, {agreements[0].num_images} images: {escape(origin)}",
        caption="apart: largest difference of two logits, as a fraction of the largest logit; other: pixels of another "
        f"class, except ties within {2 * TOLERANCE:g} of the largest logit; agrees: {bound}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
    )
    for heading in ("pixels", "apart", "other", "mIoU", "exported"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in agreements:
        mious = [f"{miou:.4f}" for miou in row.mious()] or ["", ""]
        apart = "" if row.apart is None else f"{row.apart:.1e}"
        verdict = "[green]agrees[/green]" if row.holds(precision) else "[red]DIFFERS[/red]"
        table.add_row(row.label, f"{row.num_pixels:,}", apart, f"{row.num_other:,}", *mious, verdict)
    return table


def find_check_images(saved: SavedModel, location: str | None, *, limit: int) -> tuple[str, list[CheckImage]]:
    """Load the images on which an exported model is compared or calibrated, and describe their origin.

    Args:
        saved: the model, whose channels and `resize` the images get.
        location: shards (path or URL), an image, or a folder of images; None draws shapes.
        limit: largest number of images.

    Raises:
        DataError: `location` has no images, or one that cannot be read.
    """
    if location is None:
        return "drawn shapes; give --check for real images", [_drawn(saved, index) for index in range(NUM_SHAPES)]
    path = Path(location)
    files = [path] if path.is_file() else []
    if path.is_dir() and not (path / "manifest.json").exists():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise DataError("no images and no shards in it; give another folder.", source=location)
    return location, list(islice(_from_files(saved, files) if files else _from_shards(saved, location), limit))


def _from_files(saved: SavedModel, files: list[Path]) -> Iterator[CheckImage]:
    for file in files:
        try:
            image = read_image(read_file(file), saved.model.config.in_channels, saved.image_range)
        except DataError as error:
            raise DataError(str(error), source=file) from None
        yield _at_training_size(image, None, saved.resize)


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
    return CheckImage(pixels, None if target is None else _nearest(target, (height, width)))


def _drawn(saved: SavedModel, index: int) -> CheckImage:
    planes = [channel % 3 for channel in range(saved.model.config.in_channels)]
    return _at_training_size(shapes.draw(index, seed=0, size=(96, 128))[0][..., planes], None, saved.resize)


def _nearest(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (1, H, W) or (1, C, H, W) uint8 without mixing the values of neighbours."""
    four = pixels if pixels.ndim == 4 else pixels[:, None]
    return F.interpolate(four, size, mode="nearest-exact").view(*pixels.shape[:-2], *size)
