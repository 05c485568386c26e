"""Reads one image as a viewer shows it, and predicts the class of each pixel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import TiffImagePlugin
from torch import Tensor

from unetdist.data.image_file import ImageRange, read_file, read_image
from unetdist.data.tiff import is_tiff
from unetdist.errors import DataError
from unetdist.evaluation.evaluate import predict_fixed
from unetdist.model.config import WHOLE_IMAGE, InferenceConfig
from unetdist.model.inference import predict_logits, predict_rows
from unetdist.model.saved_model import SavedModel

# Tags that place a GeoTIFF on the earth, as (tag, type, value); empty for other images.
Georeference = tuple[tuple[int, int, Any], ...]

# GeoTIFF 1.1 (OGC 19-008r4), section 7: ModelPixelScale and ModelTiepoint, or ModelTransformation, place the grid; the
# three GeoKey tags name the coordinate system. They are valid only for images of the same size.
_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION = 33550, 33922, 34264
_GEO_TAGS = (_PIXEL_SCALE, _TIEPOINT, _TRANSFORMATION, 34735, 34736, 34737)
_ORIENTATION = 274


class LoadedImage(NamedTuple):
    """The content of one image."""

    pixels: np.ndarray
    """(H, W, C) uint8."""

    georeference: Georeference = ()


@dataclass(frozen=True)
class PendingImage:
    """An image that any thread can load."""

    name: str
    """Path, URL or frame, for messages."""

    target: Path
    """Where its results go: `<target>_ids.png` and others."""

    load: Callable[[int], LoadedImage]
    """Loads it with this number of channels."""


class Prediction(NamedTuple):
    """The prediction for one image."""

    classes: np.ndarray
    """(H, W) uint8 class indices."""

    probabilities: np.ndarray | None = None
    """(num_classes, H, W) uint8, in units of 1 / 255."""


def predict_image(
    saved: SavedModel,
    image: np.ndarray,
    *,
    inference: InferenceConfig = WHOLE_IMAGE,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Predict the class indices (H, W) uint8 of an image (H, W, C) uint8 with the channels of the model.

    With a window, only the pixels and classes take memory in proportion to the image.
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
    """Predict at most `batch_size` images (H, W, C) uint8 of one size.

    Args:
        saved: the model, on `device`.
        images: images of equal size, with the channels of the model.
        batch_size: images per forward pass. A partial batch is filled up, so results do not depend on other images.
        inference: windows, flips, scales. With a window, images are predicted one by one.
        device: where to compute.
        with_probabilities: whether to return probabilities too.
        resized_to: (width, height) to which the images were resized already, like the training images.
    """
    # A second resize to the same size would blur.
    resize = None if saved.resize == resized_to else saved.resize
    tensors = [rearrange(torch.from_numpy(np.ascontiguousarray(each)), "h w c -> 1 c h w") for each in images]
    # Rows, so that the logits of a large image are never in memory all at once.
    if batch_size == 1 or inference.window is not None:
        rows_of = partial(predict_rows, saved.model, resize=resize, inference=inference)
        return [_joined([_decided(rows, with_probabilities) for rows in rows_of(one.to(device))]) for one in tensors]
    network = partial(predict_logits, saved.model, resize=resize, inference=inference)
    logits = predict_fixed(network, torch.cat(tensors).to(device), batch_size)
    assert logits is not None
    return [_decided(each, with_probabilities) for each in logits]


def _decided(logits: Tensor, with_probabilities: bool) -> Prediction:
    classes = logits.argmax(0).to(torch.uint8).cpu().numpy()
    if not with_probabilities:
        return Prediction(classes)
    probabilities = (logits.float().softmax(0) * 255).round().to(torch.uint8)
    return Prediction(classes, probabilities.cpu().numpy())


def _joined(rows: Sequence[Prediction]) -> Prediction:
    """Join predictions of parts of an image, from top to bottom."""
    classes = np.concatenate([each.classes for each in rows])
    probabilities = [each.probabilities for each in rows if each.probabilities is not None]
    return Prediction(classes, np.concatenate(probabilities, axis=1) if probabilities else None)


def read_picture(source: Path | str, channels: int, image_range: ImageRange | None = None) -> LoadedImage:
    """Read the image at a path or URL, turned upright by its EXIF orientation.

    `image_range` is that of the training images; None if unknown.

    Raises:
        DataError: not a readable image, or more than 8 bits without a range.
    """
    data = read_file(source)
    return LoadedImage(read_image(data, channels, image_range), georeference_of(data))


def georeference_of(data: bytes) -> Georeference:
    """Read the geographic tags of a TIFF file; empty for other files.

    Raises:
        DataError: the tags are damaged.
    """
    if not is_tiff(data):
        return ()
    # Not with Image.open, which does not know all the TIFFs that we read. A BigTIFF has the longer header.
    header = data[:16] if b"+" in data[2:4] else data[:8]
    file = BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"the tags of the TIFF cannot be read ({error}); save the file again.") from None
    # The prediction is turned upright, but the tags describe the stored pixels: useless where these differ.
    is_placed = any(tag in tags for tag in (_TIEPOINT, _TRANSFORMATION)) and tags.get(_ORIENTATION, 1) == 1
    return tuple((tag, tags.tagtype[tag], tags[tag]) for tag in _GEO_TAGS if is_placed and tag in tags)
