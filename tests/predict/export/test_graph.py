import json
import sys

import pytest
import torch

from tests.predict.export.models import PALETTE, picture, saved_model
from unetdist import __version__
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.predict.export.graph import metadata_of, open_onnx, quantize, trace, write_onnx

GATES = {"encoder_blocks": 1, "norm": "group", "attention": True, "upsample": "bilinear"}


@pytest.mark.parametrize("settings", [{}, GATES], ids=["plain", "gates"])
def test_one_graph_serves_all_sizes(settings):
    saved = saved_model(**settings)
    network = trace(saved, argmax=False, precision="fp32").module()
    for size in [(1, 1), (24, 32), (17, 39)]:
        image = picture(size=(max(6, size[0]), max(6, size[1]))).image[..., : size[0], : size[1]]
        torch.testing.assert_close(network(image), saved.model(image), rtol=1e-4, atol=1e-4)


def test_argmax_gives_bytes_and_half_floats():
    saved, image = saved_model(), picture().image
    network = trace(saved, argmax=True, precision="fp32").module()
    assert network(image).equal(saved.model(image).argmax(1).to(torch.uint8))
    half = trace(saved, argmax=False, precision="fp16")
    assert {value.dtype for value in half.state_dict.values() if value.is_floating_point()} == {torch.float16}
    assert half.module()(image).dtype == torch.float32
    assert saved.model.head.weight.dtype == torch.float32


def test_metadata_tell_what_a_pixel_means():
    metadata = metadata_of(saved_model(resize=(120, 90)), argmax=True, precision="fp16")
    assert Palette.from_records(json.loads(metadata["classes"])) == PALETTE
    assert json.loads(metadata["resize"]) == [120, 90]
    assert json.loads(metadata["metric"])["value"] == 0.5
    assert (metadata["unetdist_version"], metadata["precision"]) == (__version__, "fp16")
    assert "RGB, uint8" in metadata["input"]
    assert "class index" in metadata["output"]


def test_a_network_for_one_size_only_is_refused(monkeypatch):
    saved = saved_model()
    monkeypatch.setattr(saved.model, "forward", lambda image: image.reshape(2, 3, 40, 56))
    with pytest.raises(ConfigError, match=r"cannot be exported for any size: .+; train with another model.enc"):
        trace(saved, argmax=False, precision="fp32")


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
    with pytest.raises(ConfigError, match=r'must have onnxruntime, .*; type: pip install "unetdist\[export\]"'):
        open_onnx(tmp_path / "model.onnx")
