"""An encoder from timm (Wightman 2019), with or without its published weights; timm is imported on demand."""

import importlib
import re
from difflib import get_close_matches
from importlib import metadata
from types import ModuleType

from torch import Tensor, nn

from unetdist.errors import ConfigError

REMOVE = "`pip uninstall timm torchvision`"


class TimmEncoder(nn.Module):
    """Features of an image at each of the network's strides.

    Args:
        name: one of `timm.list_models()`, optionally with a tag of its weights.
        in_channels: channels of the image; timm adapts weights for three.
        pretrained: load the published weights from timm's cache or the internet.

    Raises:
        ConfigError: timm is missing, does not know the name, or the strides do not double from 1, 2 or 4 on.
    """

    def __init__(self, name: str, *, in_channels: int, pretrained: bool) -> None:
        super().__init__()
        try:
            timm = import_timm()
        except ConfigError as error:
            raise ConfigError(f"model.encoder ({name}) needs timm: {error}") from None
        if ":" in name or not timm.is_model(name):  # hf-hub:NAME and local-dir:NAME lead elsewhere
            near = get_close_matches(name, timm.list_models()) or ["resnet34"]
            raise ConfigError(f"model.encoder ({name}) must be a network of timm; use one such as {', '.join(near)}")
        try:
            self.net = timm.create_model(name, features_only=True, pretrained=pretrained, in_chans=in_channels)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"model.encoder ({name}) must give features of several sizes: {error}; use one such as resnet34"
            ) from None
        # Finest first; `first_level` is the number of halvings of the finest feature.
        self.channels: list[int] = list(self.net.feature_info.channels())
        strides = self.net.feature_info.reduction()
        self.first_level = strides[0].bit_length() - 1
        if strides != [strides[0] << level for level in range(len(strides))] or strides[0] not in (1, 2, 4):
            raise ConfigError(
                f"model.encoder ({name}) must have strides that double from 1, 2 or 4 on, it has {strides}; "
                "use one such as resnet34"
            )
        # Channel statistics of the pixels that its weights were trained on, 0..255.
        facts = getattr(self.net, "pretrained_cfg", None) or self.net.default_cfg
        self.mean, self.std = ([255.0 * value for value in facts[name]] for name in ("mean", "std"))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised (B, in_channels, H, W) -> its features, finest first."""
        features: list[Tensor] = self.net(x)
        return features


def import_timm() -> ModuleType:
    """Import the library timm; raises `ConfigError` if it is missing, or torchvision was built for another torch."""
    try:
        return importlib.import_module("timm")
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise ConfigError(f"it is not installed; {install_line()}") from None
        versions = ", ".join(f"{package} {version_of(package)}" for package in ("timm", "torchvision", "torch"))
        raise ConfigError(
            f"it cannot be imported, and neither can the command `accelerate`, which imports it ({error}; {versions}). "
            f"Give torch its own torchvision: {install_line()}. Or do without networks of timm: {REMOVE}"
        ) from None


def install_line() -> str:
    """The command that installs timm, and the torchvision of the installed torch's version and build.

    pip alone compares only the numbers: to torch 2.13.0+cpu it adds the torchvision 0.28.0 that was built for CUDA.
    """
    try:
        importlib.import_module("torchvision")
    except Exception:
        torch = metadata.version("torch")
        # torch 2.N.P goes with torchvision 0.(N + 15).P (README of pytorch/vision)
        minor, patch = map(int, re.findall(r"\d+", torch)[1:3])
        number = "+".join([f"0.{minor + 15}.{patch}", *torch.split("+")[1:]])
        index = ", with PIP_EXTRA_INDEX_URL=URL set to the index that torch came from" if "+" in torch else ""
        return f"`pip install timm torchvision==={number}`{index}"
    return "`pip install timm`"  # the torchvision of a container is in no index


def version_of(package: str) -> str:
    """Version of an installed package, or `missing`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
