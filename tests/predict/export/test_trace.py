import json
from dataclasses import replace

import pytest
import torch

from tests.predict.export.models import PALETTE, picture, saved_model
from unetdist import __version__
from unetdist.data.labels import Label, Palette
from unetdist.errors import ConfigError
from unetdist.predict.export.trace import metadata_of, trace

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


def test_more_classes_than_a_byte_holds():
    many = Palette(tuple(Label(i, f"c{i}", (i % 256, i // 256, 0), i) for i in range(257)))
    with pytest.raises(ConfigError, match=r"--argmax .* 256 classes at most, .* has 257; leave it out"):
        trace(replace(saved_model(), palette=many), argmax=True, precision="fp32")


def test_a_network_for_one_size_only_is_refused(monkeypatch):
    saved = saved_model()
    monkeypatch.setattr(saved.model, "forward", lambda image: image.reshape(2, 3, 40, 56))
    with pytest.raises(ConfigError, match=r"cannot be exported for any size: .+; train with another model.enc"):
        trace(saved, argmax=False, precision="fp32")
