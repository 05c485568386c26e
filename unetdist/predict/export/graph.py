"""Writes a network as an ONNX graph for any batch, height and width, with its normalisation inside."""

import copy
import importlib
import json
import logging
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unetdist import __version__
from unetdist.cli.commands import extra, typed
from unetdist.errors import ConfigError
from unetdist.model.inference import Predict
from unetdist.model.saved_model import SavedModel
from unetdist.storage.files import write_atomic

Precision = Literal["fp32", "fp16", "int8"]


class Deployed(nn.Module):
    """The exported network: bytes to logits, or to class indices with `argmax`."""

    def __init__(self, model: nn.Module, *, argmax: bool) -> None:
        super().__init__()
        self.model = model
        self.argmax = argmax

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, num_classes, H, W) float32, or (B, H, W) uint8 class indices."""
        logits: Tensor = self.model(image).float()
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits


def trace(saved: SavedModel, *, argmax: bool, precision: Precision) -> ExportedProgram:
    """Trace a model on the CPU. The graph of int8 is that of fp32, to be quantised afterwards.

    Raises:
        ConfigError: a part of the model works for one size only.
    """
    model = copy.deepcopy(saved.model)
    deployed = Deployed(model.half() if precision == "fp16" else model.float(), argmax=argmax).eval()
    # A batch of 1 would be taken for a constant.
    image = torch.zeros(2, model.config.in_channels, 40, 56, dtype=torch.uint8)
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(deployed, (image,), dynamic_shapes=sizes)
    except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ConfigError(
            f"this network cannot be exported for any size: {textwrap.shorten(str(error), 300)}; train with another "
            f"model.encoder, or predict with `{typed('predict')}`."
        ) from None


def metadata_of(saved: SavedModel, *, argmax: bool, precision: Precision) -> dict[str, str]:
    """Return the metadata of the graph as text; `classes`, `resize` and `image_range` are JSON.

    A pixel of class c has the name, the colour and the id of the entry of `classes` whose `index` is c.
    """
    channels = {1: "grey", 3: "RGB", 4: "RGBA"}.get(saved.model.config.in_channels, "channels as trained")
    values = "0..255" if saved.image_range is None else "0..255, scaled from image_range and rounded"
    classes, logits = "class index, uint8 (batch, height, width)", "logits, float32 (batch, classes, height, width)"
    return {
        "unetdist_version": __version__,
        "input": f"{channels}, uint8 {values}, (batch, channels, height, width); normalised inside",
        "output": classes if argmax else logits,
        "precision": precision,
        "classes": json.dumps(saved.palette.to_records(), ensure_ascii=False),
        "resize": json.dumps(saved.resize),  # (width, height) of the training images; null: their own
        # Values of the training images that became 0 and 255; null: they had 8 bits, or it is unknown.
        "image_range": json.dumps(saved.image_range),
        "metric": json.dumps(saved.config.get("metric")),
    }


def write_onnx(
    program: ExportedProgram, file: Path, metadata: Mapping[str, str], *, opset: int | None, argmax: bool
) -> None:
    """Write a traced network as .onnx with its weights; `opset` None leaves the choice to the exporter.

    Raises:
        ConfigError: the extra `export` is not installed.
    """
    _module("onnxscript")  # before the exporter fails on it with a long traceback
    with _quiet():
        exported = torch.onnx.export(
            program,
            input_names=["image"],
            output_names=["pred" if argmax else "logits"],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    _name_sizes(exported.model)
    with write_atomic(file) as out:
        out.write(exported.model_proto.SerializeToString())


def _name_sizes(model: Any) -> None:
    """Rename the free sizes to batch, height and width; the tracer numbers them."""
    (image,), (output,) = model.graph.inputs, model.graph.outputs
    names = ("batch", None, "height", "width")
    renamed = {str(old.value): new for old, new in zip(image.shape, names, strict=True) if new}
    for value in (image, output):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = renamed.get(str(size.value), size.value)


def quantize(file: Path, images: Sequence[Tensor]) -> None:
    """Quantise an .onnx statically to int8, with a scale for each channel of the weights.

    Args:
        file: result of `write_onnx`, which is replaced.
        images: (1, C, H, W) uint8, from which the range of every layer is learned.
    """
    quantization = _module("onnxruntime.quantization")
    inputs = iter([{"image": image.numpy()} for image in images])
    with tempfile.TemporaryDirectory(prefix="unetdist-export-") as work, _quiet():
        # ONNX Runtime writes the file piece by piece, and must not leave half of it behind.
        small = Path(work) / "int8.onnx"
        quantization.quantize_static(
            file,
            small,
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            per_channel=True,
            # Other operators in int8 cost more time than they save.
            op_types_to_quantize=["Conv", "ConvTranspose", "Relu", "MaxPool", "Concat"],
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        with write_atomic(file) as out:
            out.write(small.read_bytes())


def open_onnx(file: Path) -> Predict:
    """Open an .onnx, to be run by ONNX Runtime on the CPU."""
    runtime = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"export must have {name}, which cannot be imported ({error}); type: {extra('export')}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporters warn about their own parts, which a user cannot change.
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
