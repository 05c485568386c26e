"""ONNX: written by torch's exporter, made small by ONNX Runtime, run by it. Needs the extra `export`."""

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from unetdist.errors import ConfigError
from unetdist.model.inference import Predict
from unetdist.predict.export.trace import quiet
from unetdist.storage.files import write_atomic

# Versions of ONNX's operators that the exporter writes and ONNX Runtime reads.
OPSETS = range(18, 24)


def write_onnx(
    program: ExportedProgram, file: Path, metadata: Mapping[str, str], *, opset: int | None, argmax: bool
) -> None:
    """Write a traced network, weights inside; `opset` None: the exporter's own choice.

    Raises:
        ConfigError: Without the extra.
    """
    _module("onnxscript")
    with quiet():
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


def quantize(file: Path, images: Sequence[Tensor]) -> None:
    """Replace a network by one that convolves bytes (static quantisation, a scale for each channel of the weights).

    Args:
        file: What `write_onnx` wrote.
        images: (1, C, H, W) uint8, from which the range of every layer is learned.
    """
    quantization = _module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="unetdist-export-") as work, quiet():
        small = Path(work) / "int8.onnx"
        quantization.quantize_static(
            file,
            small,
            _Images(images),
            per_channel=True,
            # What else it could do in bytes costs more than it saves.
            op_types_to_quantize=["Conv", "ConvTranspose", "Relu", "MaxPool", "Concat"],
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        with write_atomic(file) as out:
            out.write(small.read_bytes())


def open_onnx(file: Path) -> Predict:
    """The network in a file, run by ONNX Runtime on the CPU with as many threads as torch."""
    runtime = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def predict(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    return predict


class _Images:
    """Images as the calibration asks for them, one after the other."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._rest = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._rest, None)
        return None if image is None else {"image": image.numpy()}


def _name_sizes(model: Any) -> None:
    """Call the free sizes what they are; the tracer's names are numbers."""
    (image,), (output,) = model.graph.inputs, model.graph.outputs
    names = ("batch", None, "height", "width")
    renamed = {str(old.value): new for old, new in zip(image.shape, names, strict=True) if new}
    for value in (image, output):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = renamed.get(str(size.value), size.value)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'--format onnx must have {name}, which cannot be imported ({error}); pip install -e ".[export]"'
        ) from None
