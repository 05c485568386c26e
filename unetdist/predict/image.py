"""One picture: its pixels as a viewer shows them, and the class of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from unetdist.data.image_file import ImageRange, read_file, read_image
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import predict_fixed
from unetdist.model.inference import WHOLE_IMAGE, InferenceConfig, predict_logits, predict_rows
from unetdist.model.saved_model import SavedModel
from unetdist.predict.georeference import NOWHERE, Georeference, georeference_of


class Picture(NamedTuple):
    """What was read of one image."""

    pixels: np.ndarray
    """(H, W, C) uint8"""

    georeference: Georeference = NOWHERE


# Whether the picture of that number and target is to be read; without a target: whether it may be.
Wanted = Callable[[int, Path | None], bool]


@dataclass(frozen=True)
class Item:
    """A picture that can be read, by any thread, with so many channels."""

    name: str
    target: Path
    load: Callable[[int], Picture]


class Prediction(NamedTuple):
    """What the model says of one image."""

    classes: np.ndarray
    """(H, W) uint8 class indices."""

    probabilities: np.ndarray | None = None
    """(num_classes, H, W) uint8, in 255ths."""


def predict_image(
    saved: SavedModel,
    image: np.ndarray,
    *,
    inference: InferenceConfig = WHOLE_IMAGE,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Class indices (H, W) uint8 of an image (H, W, C) uint8 with the channels of the model.

    With a window the memory that this takes does not grow with the image, but for its pixels and classes.
    """
    return predict_images(saved, [image], inference=inference, device=device)[0].classes


def predict_images(
    saved: SavedModel,
    images: Sequence[np.ndarray],
    *,
    batch_size: int = 1,
    inference: InferenceConfig = WHOLE_IMAGE,
    device: torch.device | str = "cpu",
    with_probabilities: bool = False,
    resized_to: tuple[int, int] | None = None,
) -> list[Prediction]:
    """The classes of at most `batch_size` images (H, W, C) uint8 of one size.

    The result of an image does not depend on the images beside it: a forward pass has always `batch_size` of them.
    With a window it has as many windows as `inference` says, of one image at a time.

    Args:
        saved: the model, on `device`.
        images: of equal size, with the channels of the model.
        batch_size: images per forward pass.
        inference: windows, flips, scales.
        device: where to compute.
        with_probabilities: whether to keep them beside the classes.
        resized_to: (width, height) that the images were resized to already, if so, as those of the training.
    """
    resize = None if saved.resize == resized_to else saved.resize
    tensors = [rearrange(torch.from_numpy(np.ascontiguousarray(each)), "h w c -> 1 c h w") for each in images]
    if batch_size == 1 or inference.window is not None:
        return [
            _joined(
                [
                    _decided(rows, with_probabilities)
                    for rows in predict_rows(saved.model, one.to(device), resize=resize, inference=inference)
                ]
            )
            for one in tensors
        ]
    network = partial(predict_logits, saved.model, resize=resize, inference=inference)
    logits = predict_fixed(network, torch.cat(tensors).to(device), batch_size)
    assert logits is not None
    return [_decided(each, with_probabilities) for each in logits]


def _decided(logits: Tensor, with_probabilities: bool) -> Prediction:
    """Of (num_classes, H, W) logits."""
    classes = logits.argmax(0).to(torch.uint8).cpu().numpy()
    if not with_probabilities:
        return Prediction(classes)
    shares = (logits.float().softmax(0) * 255).round().to(torch.uint8)
    return Prediction(classes, shares.cpu().numpy())


def _joined(portions: Sequence[Prediction]) -> Prediction:
    """From top to bottom."""
    classes = np.concatenate([each.classes for each in portions])
    shares = [each.probabilities for each in portions if each.probabilities is not None]
    return Prediction(classes, np.concatenate(shares, axis=1) if shares else None)


def read_picture(source: Path | str, channels: int, image_range: ImageRange | None = None) -> Picture:
    """The image at a path or URL, turned as its EXIF orientation asks, with its place on the earth where it says one.

    `image_range`: that of the images trained on; None: unknown.

    Raises:
        DataError: not an image that can be read, or of more than 8 bits and without a range.
    """
    data = read_file(source)
    return Picture(read_image(data, channels, image_range), georeference_of(data))


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: this machine, or this build of torch, has none.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device ({name}) cannot be used here: {reason}; use --device cpu.") from None
