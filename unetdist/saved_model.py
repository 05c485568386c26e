"""A folder to predict with: weights, architecture, classes and how good it is; no pickle."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from unetdist import __version__, settings, storage
from unetdist.data import git_lfs
from unetdist.data.image_file import ImageRange
from unetdist.data.labels import Palette
from unetdist.errors import CheckpointError, DataError
from unetdist.model.unet import UNet, UNetConfig

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MODEL_FORMAT = "unetdist-model-1"

DESCRIBED = ("format", "unetdist_version", "model", "classes", "mean", "std", "resize", "image_range")
"""What the configuration says of every model; all else are facts of its training."""


@dataclass(frozen=True)
class SavedModel:
    """A trained model with all that is needed to predict with it."""

    model: UNet
    palette: Palette
    resize: tuple[int, int] | None
    """(width, height) that the training images were resized to, None for their own size."""

    config: dict[str, Any]
    """What `save_model` was given, and the architecture."""

    image_range: ImageRange | None = None
    """Values of the training images that became 0 and 255; None: unknown, saved before models said so."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `save_model` was given under that name."""
        return {name: value for name, value in self.config.items() if name not in DESCRIBED}


def save_model(
    folder: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    *,
    model: UNetConfig,
    palette: Palette,
    resize: tuple[int, int] | None,
    image_range: ImageRange | None = None,
    facts: Mapping[str, Any],
) -> None:
    """Write `model.safetensors` and its readable twin `config.json` to `folder`.

    Args:
        folder: made if absent; a model in it is replaced in one atomic step.
        state: `state_dict` of an unwrapped UNet; mean and std are among its buffers.
        model: the architecture.
        palette: classes and colours.
        resize: (width, height) the shards were made with.
        image_range: values of the shards' source images that became 0 and 255; None: unknown.
        facts: metric, confusion, step: kept as they are; JSON types.
    """
    if wrapped := [name for name in state if name.startswith(("module.", "_orig_mod."))]:
        raise CheckpointError(
            f"'{wrapped[0]}' belongs to a wrapped model; save the state_dict of the module inside."
        )
    config = {
        "format": MODEL_FORMAT,
        "unetdist_version": __version__,
        "model": settings.to_mapping(model),
        "classes": palette.to_records(),
        "mean": state["mean"].flatten().tolist(),
        "std": state["std"].flatten().tolist(),
        "resize": None if resize is None else list(resize),
        "image_range": None if image_range is None else list(image_range),
        **facts,
    }
    # The config travels inside the weights' header, so that a crash between the two files cannot part them.
    metadata = {"format": "pt", "unetdist": json.dumps(config, allow_nan=False)}
    with storage.write_atomic(Path(folder) / MODEL_FILE) as file:
        file.write(tensors_to_bytes({name: value.contiguous() for name, value in state.items()}, metadata))
    storage.write_json(Path(folder) / CONFIG_FILE, config)


def load_model(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> SavedModel:
    """Read what `save_model` wrote, in evaluation mode on `device`.

    Raises:
        CheckpointError: no weights there, damaged, or not made by this framework.
    """
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give --model the folder of a trained model, runs/NAME/best."
        )
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            config = json.loads((file.metadata() or {}).get("unetdist", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        _refuse_pointer(path)
        raise CheckpointError(
            f"{path} is damaged ({error}); use another checkpoint or train again."
        ) from None
    if config.get("format") != MODEL_FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')!r}, this version reads {MODEL_FORMAT!r}; "
            "use weights that launch/train.py saved, or the version that saved these."
        )
    palette = Palette.from_records(config["classes"])
    architecture = settings.from_mapping(UNetConfig, config["model"], where=str(path))
    unet = UNet(
        replace(architecture, pretrained=False),  # The weights are here: nothing is downloaded.
        num_classes=palette.num_classes,
        mean=config["mean"],
        std=config["std"],
    )
    unet = unet.to(device=device, dtype=state["mean"].dtype)
    try:
        unet.load_state_dict(state)
    except RuntimeError as error:
        why = textwrap.shorten(str(error), 300)
        raise CheckpointError(
            f"{path} does not fit its own configuration: {why}; save the model again."
        ) from None
    resize = config["resize"]
    image_range = config.get("image_range")  # Models did not say so before.
    return SavedModel(
        unet.eval(),
        palette,
        None if resize is None else (resize[0], resize[1]),
        config,
        None if image_range is None else (float(image_range[0]), float(image_range[1])),
    )


def _refuse_pointer(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            git_lfs.refuse_pointer(file.read(len(git_lfs.START)), str(path))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except OSError:
        return
