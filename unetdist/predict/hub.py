"""A trained network for other people: a folder or a repository of the Hugging Face Hub, with a model card."""

import html
import os
import re
import tempfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdist.cli.credentials import mask
from unetdist.data import drawing
from unetdist.data.decode import CHANNEL_MODES
from unetdist.data.image_file import (
    ImageRange,
    Values,
    as_values,
    eight_bit_of_model,
    extremes,
    pixels_of_pillow,
    with_channels,
)
from unetdist.errors import ConfigError, DataError, one_line
from unetdist.model import unet
from unetdist.model.config import WHOLE_IMAGE, InferenceConfig
from unetdist.model.saved_model import SavedModel, load_model, read_config, save_model, unfilled
from unetdist.predict.image import predict_images, read_picture
from unetdist.storage.files import write_text
from unetdist.storage.remote import is_url

CARD_FILE = "README.md"
EXAMPLE_FILE = "example.png"

_CARD = """---
library_name: unetdist
pipeline_tag: image-segmentation
tags: [semantic-segmentation, unet]
{license}---

# {name}

A U-Net for semantic segmentation: from an image to the class of each pixel.{score}
{example}
```python
from unetdist import UNet

model = UNet.from_pretrained("{source}")
classes = model.predict("street.jpg")  # (H, W) indices into model.classes
```

`config.json` has the architecture, the colours of the classes and the size of the training images.{values}

| index | id | class | IoU |
|---|---|---|---|
{classes}"""

# A path, a URL or a Pillow image, which are turned upright by their EXIF orientation; an array (H, W) or (H, W, C); or
# a tensor (H, W) or (C, H, W). Values of more than 8 bits have the same meaning as in the training images.
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
ImageList = list[Any] | tuple[ImageLike, ...]


class UNet(unet.UNet):
    """A trained U-Net that knows its classes: a `torch.nn.Module` from image to logits, first in evaluation mode.

    Attributes:
        palette: names, ids and colours of the classes.
        resize: (width, height) in pixels of the training images; None: their own size.
        image_range: values of the training images that became 0 and 255. None if they had 8 bits, or if the model does
            not say; set it to predict images of more than 8 bits.
        facts: facts about the training: step, metric, report.
    """

    def __init__(self, saved: SavedModel) -> None:
        with unfilled(saved.model.config):  # without random weights, which would be replaced
            super().__init__(saved.model.config, saved.palette.num_classes, saved.config["mean"], saved.config["std"])
        self.load_state_dict(saved.model.state_dict(), assign=True)
        self.to(saved.model.mean)  # a network of timm may have tensors that are not saved
        self.palette, self.resize, self.facts = saved.palette, saved.resize, saved.facts
        self.image_range = saved.image_range
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return self.palette.class_names

    @property
    def colors(self) -> np.ndarray:
        """(num_classes, 3) uint8 RGB colours of the classes, by index."""
        return self.palette.colors

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes by index, which is the value in predictions; the ids of Labels.txt may be others."""
        return dict(enumerate(self.classes))

    @property
    def device(self) -> torch.device:
        """Device that computes; `model.to("cuda")` changes it."""
        return self.mean.device

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, device: str | torch.device = "cpu", **download: Any
    ) -> Self:
        """Load a folder that a training or `save_pretrained` wrote, or a repository of the Hub.

        Args:
            source: the folder of a model or of a run, `runs/NAME`; or a repository as `OWNER/NAME`, which needs no
                network if it was loaded before.
            device: where to compute.
            download: `revision`, `token`, `cache_dir`, `local_files_only` of `huggingface_hub.snapshot_download`.

        Raises:
            CheckpointError: neither exists, or the weights are damaged or of another version.
        """
        return cls(load_model(source, device, **download))

    def __repr__(self) -> str:
        size = f"widths {list(self.config.level_widths)}" if self.config.widths else self.config.preset
        parts = [
            self.config.encoder or size,
            f"{sum(each.numel() for each in self.parameters()):,} parameters",
            f"{len(self.classes)} classes",
        ]
        metric = self.facts.get("metric")
        if isinstance(metric, dict) and isinstance(metric.get("value"), float):
            parts.append(f"mIoU {metric['value']:.1%}")
        return f"UNet({', '.join(parts)}, {self.device})"

    @overload
    def predict(
        self, image: ImageLike, *, inference: InferenceConfig = WHOLE_IMAGE, batch_size: int = 1
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, image: ImageList, *, inference: InferenceConfig = WHOLE_IMAGE, batch_size: int = 1
    ) -> list[np.ndarray]: ...

    def predict(
        self, image: ImageLike | ImageList, *, inference: InferenceConfig = WHOLE_IMAGE, batch_size: int = 1
    ) -> np.ndarray | list[np.ndarray]:
        """Predict the class of each pixel.

        Args:
            image: see `ImageLike`; a list of them; or a batch, which is an array (B, H, W, C) or a tensor (B, C, H, W).
            inference: windows, flips, scales.
            batch_size: neighbours of equal size in a list that are predicted together; more is faster on a GPU. Which
                images share a batch changes nothing.

        Returns:
            (H, W) uint8 indices into `classes`; a list of them for a list, and (B, H, W) for a batch. `palette.to_ids`
            and `palette.colorize` turn them into ids or colours.

        Raises:
            DataError: not a readable image.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size ({batch_size}) must be 1 or more; use 8.")
        if isinstance(image, (list, tuple)):
            return self._predict_all(image, inference, batch_size)
        if isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4 and len(image):
            return np.stack(self._predict_all(list(image), inference, batch_size))
        return self._predict_all([image], inference, 1)[0]

    def _predict_all(self, images: ImageList, inference: InferenceConfig, batch_size: int) -> list[np.ndarray]:
        saved = SavedModel(self, self.palette, self.resize, {})
        found: list[np.ndarray] = []
        # Prediction switches to evaluation mode, which must not leak into a training.
        was_training = self.training
        try:
            for _, alike in groupby(self._pixels(images), lambda pixels: pixels.shape):
                while batch := list(islice(alike, batch_size)):
                    predictions = predict_images(
                        saved, batch, batch_size=batch_size, inference=inference, device=self.device
                    )
                    found += [prediction.classes for prediction in predictions]
        finally:
            self.train(was_training)
        return found

    def _pixels(self, images: ImageList) -> Iterator[np.ndarray]:
        """Read one image after the other, because thousands may not fit into memory."""
        for number, image in enumerate(images):
            try:
                yield pixels_of(image, self.config.in_channels, self.image_range)
            except DataError as error:
                if len(images) == 1 or error.source is not None:
                    raise
                raise DataError(str(error), source=f"image {number} of the list") from None

    def overlay(self, image: ImageLike, *, inference: InferenceConfig = WHOLE_IMAGE) -> Image.Image:
        """Draw the image, grey, under the colours of its predicted classes, above a legend; see `predict`."""
        pixels = pixels_of(image, self.config.in_channels, self.image_range)
        classes = self.predict(pixels, inference=inference)
        return Image.fromarray(drawing.overlay(pixels, classes, self.colors, self.classes))

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        repo_id: str | None = None,
        example: ImageLike | None = None,
    ) -> None:
        """Save the weights, their settings and a model card.

        Args:
            folder: where to save; created if absent.
            license: license of the weights with its name on the Hub, such as `apache-2.0`.
            repo_id: future repository; named on the card.
            example: an image to show on the card with its prediction.
        """
        save_model(
            folder,
            self.state_dict(),
            model=self.config,
            palette=self.palette,
            resize=self.resize,
            image_range=self.image_range,
            facts=self.facts,
        )
        if example is not None:
            self.overlay(example).save(Path(folder) / EXAMPLE_FILE)
        write_text(Path(folder) / CARD_FILE, card_of(folder, license=license, repo_id=repo_id))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        example: ImageLike | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a trained U-Net",
    ) -> str:
        """Upload the files of `save_pretrained` to a repository of the Hub, and return its address.

        Args:
            repo_id: `owner/name`; created if absent.
            license: see `save_pretrained`.
            example: see `save_pretrained`.
            private: whether only you can see it; None: the default of your account.
            token: token of your account; None: that of `hf auth login`.
            commit_message: message of the upload.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, example=example, repo_id=address.repo_id)
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=commit_message)
        return str(address)


def pixels_of(image: ImageLike, channels: int, image_range: ImageRange | None = None) -> np.ndarray:
    """Read an image in any form as (H, W, channels) uint8.

    `image_range` is that of the training images; None if unknown.

    Raises:
        DataError: another kind of numbers, another shape, or an unreadable file.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            place = str(image) if is_url(image) else Path(image)
            return read_picture(place, channels, image_range).pixels
        except DataError as error:
            raise DataError(str(error), source=mask(image)) from None
    if isinstance(image, Image.Image):
        return pixels_of_pillow(image, channels, image_range)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise DataError(
            f"an image is of type {type(image).__name__}; give a path, a URL, a Pillow image, an array or a tensor, or "
            "a list of them."
        )
    values = _values_of(image)
    if image_range is None and values.dtype != np.uint8:
        low, high = extremes(values)
        remedy = "give it as uint8, not normalised (the model does that)"
        if low >= 0:
            remedy = "give it as uint8" if high > 1 else "multiply it by 255 and give it as uint8"
        raise DataError(
            f"an image has {values.dtype} values of {low:g} to {high:g}, and the model was trained on 8 bits; "
            f"{remedy}, or set model.image_range = (LOW, HIGH), the values of black and white."
        )
    return np.array(with_channels(eight_bit_of_model(values, image_range), channels), order="C")


def _values_of(image: np.ndarray | Tensor) -> Values:
    """The values (H, W, C) of an array or a tensor."""
    other, remedy = 0, "an array is (H, W, C): give image.transpose(1, 2, 0)"
    shape = tuple(image.shape)
    if isinstance(image, Tensor):
        other, remedy = -1, "a tensor is (C, H, W): give image.permute(2, 0, 1)"
        image = image.detach().cpu()
        # NumPy lacks bfloat16.
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if image.ndim == 3 and image.shape[2] not in CHANNEL_MODES and shape[other] in CHANNEL_MODES:
        raise DataError(f"an image has the shape {shape}; {remedy}.")
    return as_values(image)


def card_of(folder: str | os.PathLike[str], *, license: str | None = None, repo_id: str | None = None) -> str:
    """Write the model card of a folder that `save_model` wrote; see `UNet.save_pretrained`."""
    config = read_config(folder)
    report = config.get("report") or {"miou": None, "classes": {}}
    score = ""
    if report["miou"] is not None:
        low_high = report["miou_interval_95"]
        interval = " (95% interval {:.1%} to {:.1%})".format(*low_high) if low_high else ""
        score = (
            f" Its mIoU is {report['miou']:.1%}{interval} on the {report['num_samples']} images of the validation set."
        )
    values = ""
    if config.get("image_range"):
        values = " Values {:.10g} to {:.10g} of deeper images became 0 to 255.".format(*config["image_range"])
    rows = ""
    for record in config["classes"]:
        if record["index"] is not None:
            iou = report["classes"].get(record["name"], {}).get("iou")
            percent = "" if iou is None else f"{iou:.1%}"
            rows += f"| {record['index']} | {record['id']} | {_literal(record['name'])} | {percent} |\n"
    return _CARD.format(
        license=f"license: {license}\n" if license else "",
        name=_literal(str(repo_id or config.get("run") or "U-Net").split("/")[-1]),
        score=score,
        source=repo_id or "FOLDER",
        example=f"\n![An example]({EXAMPLE_FILE})\n" if (Path(folder) / EXAMPLE_FILE).exists() else "",
        values=values,
        classes=rows,
    )


def _literal(name: str) -> str:
    """Escape a name so that Markdown and HTML in it are shown literally."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(one_line(name), quote=False))
