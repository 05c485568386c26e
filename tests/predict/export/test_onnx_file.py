import sys

import pytest
import torch

from tests.predict.export.models import picture, saved_model
from unetdist.errors import ConfigError
from unetdist.predict.export.onnx_file import open_onnx, quantize, write_onnx
from unetdist.predict.export.trace import trace


@pytest.fixture(scope="module")
def onnx():
    """The library, where the extra `export` is installed."""
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra `export`")
    return pytest.importorskip("onnx", reason="needs the extra `export`")


@pytest.fixture(scope="module")
def written(onnx, tmp_path_factory):
    """A model and its file; the shapes of its layers are not all multiples of a byte's."""
    saved = saved_model(widths=(16, 32))
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(trace(saved, argmax=False, precision="fp32"), file, {"classes": "[1]"}, opset=None, argmax=False)
    return saved, file


def test_a_written_graph_runs_at_any_size_and_tells_its_classes(onnx, written):
    saved, file = written
    network = open_onnx(file)
    for size in [(24, 32), (17, 39)]:
        image = torch.cat([picture(index, size).image for index in range(3)])
        torch.testing.assert_close(network(image), saved.model(image), rtol=1e-4, atol=1e-4)
    model = onnx.load(file)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"classes": "[1]"}
    names = [[size.dim_param for size in value.type.tensor_type.shape.dim] for value in model.graph.input]
    assert names == [["batch", "", "height", "width"]]


def test_int8_is_smaller_and_keeps_what_it_was_told(onnx, written, tmp_path):
    saved, file = written
    small = tmp_path / "small.onnx"
    small.write_bytes(file.read_bytes())
    images = [picture(index).image for index in range(4)]
    quantize(small, images)
    assert small.stat().st_size < file.stat().st_size
    assert "classes" in {prop.key for prop in onnx.load(small).metadata_props}
    pred, other = (network(images[0]).argmax(1) for network in (saved.model, open_onnx(small)))
    assert (pred == other).double().mean() > 0.9


def test_classes_in_an_older_dialect(onnx, tmp_path):
    saved, image = saved_model(), picture().image
    program = trace(saved, argmax=True, precision="fp32")
    write_onnx(program, tmp_path / "model.onnx", {}, opset=18, argmax=True)
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.opset_import[0].version, model.graph.output[0].name) == (18, "pred")
    assert open_onnx(tmp_path / "model.onnx")(image).equal(saved.model(image).argmax(1).to(torch.uint8))


def test_without_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'must have onnxruntime, .*; pip install -e ".\[export\]"'):
        open_onnx(tmp_path / "model.onnx")
