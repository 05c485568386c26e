"""Encoders of timm: with a stand-in for the library everywhere, with the library where it can be imported."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.synthetic import PALETTE_RECORDS
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import load_model, save_model
from unetdist.model.timm_encoder import TimmEncoder
from unetdist.model.unet import UNet
from unetdist.predict import hub


class Pyramid(nn.Module):
    """What timm gives for features_only: a list of features and facts of them."""

    def __init__(self, in_channels, strides):
        super().__init__()
        widths = [4 * (index + 1) for index in range(len(strides))]
        self.feature_info = SimpleNamespace(channels=lambda: widths, reduction=lambda: list(strides))
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
        self.layers = nn.ModuleList(
            nn.Conv2d(in_channels, width, stride, stride) for width, stride in zip(widths, strides, strict=True)
        )
        # As ConvNeXt and Swin do: numbers are read while it is made, and a tensor is not saved.
        (scale,) = torch.linspace(1.0, 2.0, 1).tolist()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x):
        return [self.scale * layer(x) for layer in self.layers]


@pytest.fixture
def library(monkeypatch):
    """A timm of three networks; `asked` is what it was asked for."""
    strides = {"two": (2, 4, 8), "four": (4, 8, 16), "flat": (16, 16)}
    asked = []

    def create_model(name, *, features_only, pretrained, in_chans):
        assert features_only
        asked.append((name, pretrained))
        if name == "none":
            raise RuntimeError("features_only not implemented")
        return Pyramid(in_chans, strides[name])

    names = [*strides, "none"]
    fake = SimpleNamespace(
        create_model=create_model, is_model=names.__contains__, list_models=lambda: names, asked=asked
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def unet(num_classes=4, **settings):
    return UNet(UNetConfig(**{"widths": (3, 5, 7)} | settings), num_classes, [1.0] * 3, [2.0] * 3)


@pytest.mark.parametrize(("name", "widths"), [("two", [3, 4, 8, 12]), ("four", [3, 5, 4, 8, 12])])
@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_trains_on_any_size_with_our_levels_where_it_has_none(library, name, widths, size):
    model = unet(encoder=name, attention=True, deep_supervision=True, norm="group")
    assert [level.layers[0].conv.out_channels for level in model.encoder] == widths[:-3]
    outputs = model(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 4, *size)] * (len(widths) - 1)
    sum(logits.square().sum() for logits in outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["hf-hub:owner/two", "local-dir:/tmp/two", "two.hf-hub:owner/two"])
def test_a_model_chooses_no_repository_and_no_folder(library, name):
    library.is_model = lambda name: True
    with pytest.raises(ConfigError, match="must be a network of timm"):
        unet(encoder=name)
    assert library.asked == []


def test_pretrained_weights_bring_their_pixel_statistics_and_stay_as_they_are(library, monkeypatch):
    drawn = []
    create = library.create_model
    monkeypatch.setattr(library, "create_model", lambda *a, **k: drawn.append(net := create(*a, **k)) or _biased(net))
    model = unet(encoder="two", pretrained=True)
    assert library.asked == [("two", True)]
    assert model.mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])
    assert model.std.flatten().tolist() == pytest.approx([51.0] * 3)
    assert all((layer.bias == 7).all() for layer in model.backbone.net.layers)
    assert unet(encoder="two").mean.flatten().tolist() == [1.0] * 3


def _biased(net):
    for layer in net.layers:
        nn.init.constant_(layer.bias, 7.0)
    return net


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twoo", r"encoder \(twoo\) must be a network of timm; use one such as two"),
        ("flat", r"encoder \(flat\) must have strides that double from 1, 2 or 4 on, it has \[16, 16\]; use"),
        ("none", r"encoder \(none\) must give features of several sizes: features_only not .*; use one"),
    ],
)
def test_networks_that_cannot_work_are_refused(library, name, message):
    with pytest.raises(ConfigError, match=message):
        TimmEncoder(name, in_channels=3, pretrained=False)


def test_without_the_library_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"encoder \(resnet34\) needs timm.*`pip install timm"):
        unet(encoder="resnet34")


def test_loading_a_saved_model_downloads_nothing(library, tmp_path):
    palette = Palette.from_records(PALETTE_RECORDS)
    model = unet(num_classes=palette.num_classes, encoder="four", pretrained=True).eval()
    save_model(tmp_path, model.state_dict(), model=model.config, palette=palette, resize=None, facts={})
    library.asked.clear()
    saved = load_model(tmp_path)
    taken_over = hub.UNet.from_pretrained(tmp_path)
    assert set(library.asked) == {("four", False)}
    image = torch.randint(0, 256, (1, 3, 9, 20), dtype=torch.uint8)
    assert torch.equal(saved.model(image), model(image))
    assert torch.equal(taken_over(image), model(image))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_networks_of_the_library_itself(name):
    try:
        import timm  # noqa: F401
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {error}")
    model = unet(encoder=name)
    model(torch.zeros(2, 3, 40, 50, dtype=torch.uint8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(torch.zeros(1, 3, 40, 50, dtype=torch.uint8)).shape == (1, 4, 40, 50)
