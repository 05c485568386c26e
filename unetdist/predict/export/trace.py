"""The network as a graph that needs no Python: for any batch, height and width, its normalisation inside."""

import copy
import json
import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unetdist import __version__
from unetdist.errors import ConfigError
from unetdist.model.saved_model import SavedModel

Precision = Literal["fp32", "fp16", "int8"]

# As many as a byte can tell apart.
MAX_CLASSES = 256


class Deployed(nn.Module):
    """What other programs run: bytes in, logits or classes out.

    Args:
        model: Image to logits.
        argmax: Give each pixel's class instead of its logits.
    """

    def __init__(self, model: nn.Module, *, argmax: bool) -> None:
        super().__init__()
        self.model = model
        self.argmax = argmax

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, num_classes, H, W) float32, or (B, H, W) uint8 indices of classes."""
        logits: Tensor = self.model(image).float()
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits


def trace(saved: SavedModel, *, argmax: bool, precision: Precision) -> ExportedProgram:
    """The graph of a model on the CPU; of int8 that of fp32, which is quantised afterwards.

    Raises:
        ConfigError: If a part of it works for one size only, or there are more classes than a byte holds.
    """
    if argmax and saved.palette.num_classes > MAX_CLASSES:
        raise ConfigError(
            f"--argmax gives one byte per pixel, for {MAX_CLASSES} classes at most, and the model has "
            f"{saved.palette.num_classes}; leave it out."
        )
    model = copy.deepcopy(saved.model)
    deployed = Deployed(model.half() if precision == "fp16" else model.float(), argmax=argmax).eval()
    # Not a batch of 1, which would be taken for a constant.
    image = torch.zeros(2, model.config.in_channels, 40, 56, dtype=torch.uint8)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(deployed, (image,), dynamic_shapes=sizes)
    except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ConfigError(
            f"this network cannot be exported for any size: {textwrap.shorten(str(error), 300)}; train with another "
            "model.encoder, or predict with launch/predict.py."
        ) from None


def metadata_of(saved: SavedModel, *, argmax: bool, precision: Precision) -> dict[str, str]:
    """The metadata of the graph, as text; `classes`, `resize` and `image_range` are JSON.

    A pixel of class c has the name, the colour and the id of that entry of `classes` whose `index` is c.
    """
    channels = {1: "grey", 3: "RGB", 4: "RGBA"}.get(saved.model.config.in_channels, "channels as trained")
    values = "0..255" if saved.image_range is None else "0..255, scaled from image_range and rounded"
    return {
        "unetdist_version": __version__,
        "input": f"{channels}, uint8 {values}, (batch, channels, height, width); normalised inside",
        "output": "class index, uint8 (batch, height, width)"
        if argmax
        else "logits, float32 (batch, classes, height, width)",
        "precision": precision,
        "classes": json.dumps(saved.palette.to_records(), ensure_ascii=False),
        "resize": json.dumps(saved.resize),  # (width, height) of the images trained on; null: their own
        # Values of the images trained on that became 0 and 255; null: they had 8 bits, or it is unknown.
        "image_range": json.dumps(saved.image_range),
        "metric": json.dumps(saved.config.get("metric")),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters warn of in their own parts."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
