"""A trained network as others take it over: a folder or a repository of the Hugging Face Hub; one call predicts."""

import os
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unetdist.data import drawing
from unetdist.data.image_file import ImageRange, as_values, eight_bit_of_model, pixels_of_pillow, with_channels
from unetdist.errors import CheckpointError, DataError
from unetdist.model import unet
from unetdist.model.inference import WHOLE_IMAGE, InferenceConfig
from unetdist.model.saved_model import CONFIG_FILE, MODEL_FILE, SavedModel, load_model, save_model, unfilled
from unetdist.predict import predict_image, read_picture, write_png
from unetdist.predict.model_card import CARD_FILE, EXAMPLE_FILE, card_of
from unetdist.storage.files import write_text

# What is needed to predict.
FILES = [MODEL_FILE, CONFIG_FILE]


class UNet(unet.UNet):
    """A trained U-Net that knows its classes; a `torch.nn.Module` from image to logits, in evaluation mode at first.

    Attributes:
        palette: names, ids and colours of the classes.
        resize: (width, height) in pixels that it was trained at; None: the images' own size.
        image_range: values of its training images that became 0 and 255; None where they had 8 bits, or where the model
            does not say: set it, and images of more than 8 bits are understood.
        facts: what is known of its training: step, metric, report.
    """

    def __init__(self, saved: SavedModel) -> None:
        with unfilled(saved.model.config):  # no random weights, which would be replaced
            super().__init__(saved.model.config, saved.palette.num_classes, saved.config["mean"], saved.config["std"])
        self.load_state_dict(saved.model.state_dict(), assign=True)
        self.to(saved.model.mean)  # a network of timm may hold tensors that are not saved
        self.palette, self.resize, self.facts = saved.palette, saved.resize, saved.facts
        self.image_range = saved.image_range
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by index."""
        return self.palette.class_names

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, device: str | torch.device = "cpu", **download: Any
    ) -> Self:
        """Load a folder that a training or `save_pretrained` wrote, or a repository of the Hub.

        Args:
            source: the folder, else a repository as `owner/name`; one that was loaded before needs no network.
            device: where to compute.
            download: `revision`, `token`, `cache_dir`, `local_files_only` of `huggingface_hub.snapshot_download`.

        Raises:
            CheckpointError: neither of them is there, or the weights are damaged or of another version.
        """
        folder = source if Path(source).is_dir() else _download(str(source), download)
        return cls(load_model(folder, device))

    def predict(
        self,
        image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor,
        *,
        inference: InferenceConfig = WHOLE_IMAGE,
    ) -> np.ndarray:
        """The class of each pixel.

        Args:
            image: a file or a Pillow image, which are turned as their EXIF orientation asks; an array (H, W) or
                (H, W, C); or a tensor (C, H, W). Values of more than 8 bits mean what they mean in the training images.
            inference: windows, flips, scales.

        Returns:
            (H, W) uint8 indices into `classes`; `palette.to_ids` and `palette.colorize` make ids or colours of them.

        Raises:
            DataError: an image that cannot be read, or is none.
        """
        pixels = pixels_of(image, self.config.in_channels, self.image_range)
        saved = SavedModel(self, self.palette, self.resize, {})
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
        example: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | None = None,
    ) -> None:
        """Write weights, settings and a model card: a folder to load, and a repository of the Hub.

        Args:
            folder: made if absent.
            license: of the weights, as the Hub names it, such as `apache-2.0`.
            repo_id: the repository that it will be, for the card.
            example: an image to show on the card beside its prediction.
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
            write_png(Path(folder) / EXAMPLE_FILE, shown)
        write_text(Path(folder) / CARD_FILE, card_of(folder, license=license, repo_id=repo_id))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a trained U-Net",
        **card: Any,
    ) -> str:
        """Put what `save_pretrained` writes into a repository of the Hub, which is made if absent; returns its address.

        Args:
            repo_id: `owner/name`.
            private: whether only you may see it; None: as your account says.
            token: of your account; None: that of `hf auth login`.
            commit_message: of the upload.
            card: `license` and `example` of `save_pretrained`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=address.repo_id, **card)
            api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=commit_message)
        return str(address)


def pixels_of(
    image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor,
    channels: int,
    image_range: ImageRange | None = None,
) -> np.ndarray:
    """(H, W, channels) uint8 of an image in any of the forms of `UNet.predict`.

    `image_range`: that of the images trained on; None: unknown.

    Raises:
        DataError: another kind of numbers, another shape, or a file that cannot be read.
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
        if image.is_floating_point() and image.dtype != torch.float64:
            image = image.float()  # NumPy lacks bfloat16
        image = image.numpy()
        image = np.ascontiguousarray(image.transpose(1, 2, 0)) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"an image is a {type(image).__name__}; give a path, a Pillow image, an array or a tensor, one at a time."
        )
    return np.array(with_channels(eight_bit_of_model(as_values(image), image_range), channels))


def _download(repo_id: str, options: dict[str, Any]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(repo_id, allow_patterns=FILES, **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repo_id} is neither a folder nor a repository of the Hub that can be read ({reason}); give the "
            "folder of a trained model, such as runs/NAME/best, or OWNER/NAME."
        ) from None
