"""A trained network for other people: a folder or a repository of the Hugging Face Hub, with a model card."""

import html
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdist.data import drawing
from unetdist.data.image_file import ImageRange, as_values, eight_bit_of_model, pixels_of_pillow, with_channels
from unetdist.errors import CheckpointError, DataError, one_line
from unetdist.model import unet
from unetdist.model.config import WHOLE_IMAGE, InferenceConfig
from unetdist.model.saved_model import (
    CONFIG_FILE,
    MODEL_FILE,
    SavedModel,
    load_model,
    read_config,
    save_model,
    unfilled,
)
from unetdist.predict import predict_image, read_picture
from unetdist.storage.files import write_text

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

# A file or a Pillow image, which are turned upright by their EXIF orientation; an array (H, W) or (H, W, C); or a
# tensor (C, H, W). Values of more than 8 bits have the same meaning as in the training images.
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


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

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, device: str | torch.device = "cpu", **download: Any
    ) -> Self:
        """Load a folder that a training or `save_pretrained` wrote, or a repository of the Hub.

        Args:
            source: a folder, or a repository as `owner/name`; a repository that was loaded before needs no network.
            device: where to compute.
            download: `revision`, `token`, `cache_dir`, `local_files_only` of `huggingface_hub.snapshot_download`.

        Raises:
            CheckpointError: neither exists, or the weights are damaged or of another version.
        """
        folder = source if Path(source).is_dir() else _download(str(source), download)
        return cls(load_model(folder, device))

    def predict(self, image: ImageLike, *, inference: InferenceConfig = WHOLE_IMAGE) -> np.ndarray:
        """Predict the class of each pixel.

        Args:
            image: see `ImageLike`.
            inference: windows, flips, scales.

        Returns:
            (H, W) uint8 indices into `classes`; `palette.to_ids` and `palette.colorize` turn them into ids or colours.

        Raises:
            DataError: not a readable image.
        """
        pixels = pixels_of(image, self.config.in_channels, self.image_range)
        saved = SavedModel(self, self.palette, self.resize, {})
        # Prediction switches to evaluation mode, which must not leak into a training.
        was_training = self.training
        try:
            return predict_image(saved, pixels, inference=inference, device=self.mean.device)
        finally:
            self.train(was_training)

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
            pixels = pixels_of(example, 3, self.image_range)
            shown = drawing.overlay(pixels, self.predict(example), self.palette.colors, self.classes)
            Image.fromarray(shown).save(Path(folder) / EXAMPLE_FILE)
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
            return read_picture(Path(image), channels, image_range).pixels
        except DataError as error:
            raise DataError(str(error), source=image) from None
    if isinstance(image, Image.Image):
        return pixels_of_pillow(image, channels, image_range)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        # NumPy lacks bfloat16.
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"an image is a {type(image).__name__}; give a path, a Pillow image, an array or a tensor, one at a time."
        )
    return np.array(with_channels(eight_bit_of_model(as_values(image), image_range), channels), order="C")


def _download(repo_id: str, options: dict[str, Any]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(repo_id, allow_patterns=[MODEL_FILE, CONFIG_FILE], **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repo_id} is neither a folder nor a readable repository of the Hub ({reason}); give the folder of a "
            "trained model, such as runs/NAME/best, or OWNER/NAME."
        ) from None


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
