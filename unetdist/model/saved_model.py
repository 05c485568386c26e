"""A folder that predicts on its own: weights, architecture, classes and scores; no pickle."""

import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from unetdist import __version__
from unetdist.cli import json_records, settings
from unetdist.cli.command_line import suggestion
from unetdist.cli.commands import typed
from unetdist.cli.logs import logger
from unetdist.data.decode import GIT_LFS_START
from unetdist.data.image_file import ImageRange
from unetdist.data.labels import Palette
from unetdist.errors import CheckpointError, ConfigError, DataError
from unetdist.model.blocks import without_memory
from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet
from unetdist.storage import files as storage

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MODEL_FORMAT = "unetdist-model-1"

# Keys in the metadata of the weights' file: the configuration, and the hash of it and of all tensors.
CONFIG, CHECKSUM = "unetdist", "unetdist_sha256"

Pixels = Annotated[int, range(1, 2**16 + 1)]


@dataclass(frozen=True, kw_only=True)
class Described:
    """Fields of every model's configuration; all others are facts about its training."""

    format: Literal["unetdist-model-1"]
    unetdist_version: str
    model: dict[str, Any]
    classes: tuple[dict[str, Any], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[Pixels, Pixels] | None
    image_range: tuple[float, float] | None = None


DESCRIBED = tuple(field.name for field in fields(Described))


@dataclass(frozen=True)
class SavedModel:
    """A trained model with everything that prediction needs."""

    model: UNet
    palette: Palette
    resize: tuple[int, int] | None
    """(width, height) of the training images; None: their own size."""

    config: dict[str, Any]
    """The configuration in the file: architecture, classes, and the facts given to `save_model`."""

    image_range: ImageRange | None = None
    """Values of the training images that became 0 and 255; None: 8 bits, or unknown."""

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that were given to `save_model`."""
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
    """Write `model.safetensors`, and a readable copy of its configuration in `config.json`.

    The folder is created if absent; a model in it is replaced in one atomic step. `state` is the `state_dict` of an
    unwrapped UNet of the architecture `model`, with mean and std among its buffers. For `resize` and `image_range` see
    `SavedModel`. `facts` (metric, confusion, step and more) are stored unchanged, so they have JSON types.
    """
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
    # The header of the weights holds the config too, so that a crash between the two files cannot separate them.
    text = json.dumps(config, allow_nan=False)
    tensors = {name: value.contiguous() for name, value in state.items()}
    metadata = {"format": "pt", CONFIG: text, CHECKSUM: checksum(text, tensors)}
    with storage.write_atomic(Path(folder) / MODEL_FILE) as file:
        file.write(tensors_to_bytes(tensors, metadata))
    storage.write_json(Path(folder) / CONFIG_FILE, config)


def load_model(source: str | os.PathLike[str], device: str | torch.device = "cpu", **download: Any) -> SavedModel:
    """Read what `save_model` wrote, in evaluation mode on `device`; see `find_model` for `source` and `download`.

    The network itself needs no memory until it takes over the tensors of the file, except for timm networks.

    Raises:
        CheckpointError: the weights are missing, damaged, not finite, or not made by this framework.
    """
    path = find_model(source, **download) / MODEL_FILE
    with _opened(path) as file:
        text, config, described, palette = _configuration(file, path)
        try:
            architecture = settings.from_mapping(UNetConfig, described.model, where="its architecture")
        except ConfigError as error:
            raise _damaged(path, error) from None
        architecture = replace(architecture, pretrained=False)  # the weights are here: nothing is downloaded
        with unfilled(architecture):
            unet = UNet(architecture, palette.num_classes, described.mean, described.std)
        state = {name: file.get_tensor(name) for name in sorted(file.keys())}
        _check_tensors(state, text, file.metadata().get(CHECKSUM), path)
    try:
        unet.load_state_dict(state, assign=True)
    except RuntimeError as error:  # names the tensors that are missing, superfluous, or of another shape
        raise CheckpointError(
            f"{path} does not fit its own configuration ({textwrap.shorten(str(error), 300)}); use another checkpoint, "
            "or save the model again."
        ) from None
    # Training used this layout: another one rounds differently, and is slower.
    unet.to(device=device, dtype=state["mean"].dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return SavedModel(unet.requires_grad_(True).eval(), palette, described.resize, config, described.image_range)


def find_model(source: str | os.PathLike[str], **download: Any) -> Path:
    """Find the folder of a model's weights.

    Args:
        source: that folder, or a file in it; the folder of a run, which has the weights in `best`, or in `last` without
            a validation; or a repository of the Hugging Face Hub as OWNER/NAME. Folders come first.
        download: options of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        CheckpointError: there are no weights.
    """
    folder = Path(source)
    if folder.is_file():
        folder = folder.parent
    if folder.is_dir():
        for place in (folder, folder / "best", folder / "last"):
            if (place / MODEL_FILE).is_file():
                return place
        if runs := sorted(str(file.parents[1]) for file in folder.glob(f"*/best/{MODEL_FILE}"))[:5]:
            raise CheckpointError(f"{folder} holds several runs; give one of them: {', '.join(runs)}.")
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        remedy = "give runs/NAME after its first validation."
        raise CheckpointError(f"{folder} has no trained weights yet, it has {found}; {remedy}")
    # A path with a typing error must not become a request to a server.
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)) and not folder.parent.exists():
        return _download(str(source), download)
    places = {folder.parent, Path("runs")}
    known = sorted(str(file.parents[1]) for place in places for file in place.glob(f"*/best/{MODEL_FILE}"))
    near = suggestion(str(folder), known[:20]) if known else ""
    raise CheckpointError(
        f"{source} does not exist; give the folder of a trained model, such as runs/NAME, or OWNER/NAME of the Hugging "
        f"Face Hub{near}"
    )


def _download(repository: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[MODEL_FILE, CONFIG_FILE], **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{repository} is neither a folder nor a readable repository of the Hugging Face Hub ({reason}); give the "
            "folder of a trained model, such as runs/NAME, or OWNER/NAME."
        ) from None
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{repository} on the Hugging Face Hub has no {MODEL_FILE}; give a model of unetdist.")
    return folder


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the configuration of a saved model from its weights' file, or from config.json if there are no weights.

    Raises:
        CheckpointError: the configuration is missing or damaged.
    """
    path = Path(folder) / MODEL_FILE
    if path.is_file():
        with _opened(path) as file:
            return _configuration(file, path)[1]
    path = Path(folder) / CONFIG_FILE
    try:
        config = json_records.parse(storage.read_file(path))
        _described(config)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return dict(config)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the weights' file; errors of reading it become a `CheckpointError`."""
    try:
        with open(path, "rb") as weights:
            if weights.read(len(GIT_LFS_START)) == GIT_LFS_START:
                raise CheckpointError(f"{path} was not fetched, only its Git LFS pointer; run `git lfs pull` there.")
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except ConfigError:
        raise
    except (SafetensorError, OSError, ValueError, DataError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({why}); use another checkpoint or train again.")


def _configuration(file: Any, path: Path) -> tuple[str, dict[str, Any], Described, Palette]:
    """The configuration as text, as a mapping, and as its required fields; and the classes."""
    text = (file.metadata() or {}).get(CONFIG, "{}")
    config = json_records.parse(text)
    found = config.get("format") if isinstance(config, dict) else None
    if found != MODEL_FORMAT:
        raise CheckpointError(
            f"{path} has format {found!r}, this version reads {MODEL_FORMAT!r}; use weights that `{typed('train')}` "
            "saved, or the version that saved these."
        )
    described = _described(config)
    return text, config, described, Palette.from_records(described.classes)


def _described(config: Any) -> Described:
    rest = json_records.build(dict[str, Any], config)
    return json_records.build(Described, {name: rest[name] for name in DESCRIBED if name in rest})


def unfilled(architecture: UNetConfig) -> AbstractContextManager[None]:
    """Context in which a network is built whose weights are loaded next, without memory if possible."""
    # timm networks compute with tensors while they are built, and may hold some that are not saved.
    return without_memory() if architecture.encoder is None else nullcontext()


def _check_tensors(state: Mapping[str, Tensor], config: str, expected: str | None, path: Path) -> None:
    if expected is None:
        logger.info("%s has no checksum, because an older version wrote it; damage would go unnoticed", path)
    elif (found := checksum(config, state)) != expected:
        raise _damaged(path, f"its sha256 is {found} instead of {expected}")
    for name, value in state.items():
        is_count = name.endswith(".num_batches_tracked")
        if value.is_complex() or value.is_floating_point() == is_count:
            raise _damaged(path, f"{name} is {value.dtype}")
        if not is_count and not value.isfinite().all():
            raise CheckpointError(
                f"{path} cannot predict: {name} holds values that are not finite; use another checkpoint, or train "
                "again with a lower optim.lr."
            )


def checksum(config: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a configuration and of the names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256(config.encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
