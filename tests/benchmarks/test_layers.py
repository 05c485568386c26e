import pytest
import torch
import torch.nn.functional as F

from tests.benchmarks import layers as benchmark
from tests.benchmarks.layers import PassTime, time_layers, to_mapping
from unetdist.model.limit import Peaks, Work, layers_of
from unetdist.model.unet import UNetConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_every_pass_of_every_layer_is_timed_but_the_gradient_of_the_image(upsample):
    layers = layers_of(UNetConfig(widths=(4, 8), upsample=upsample, residual=True), 3, (8, 12))
    times = time_layers(layers, batch_size=2, device=CPU, precision="fp32")
    passes = {layer.name: [each.name for each in times if each.layer is layer] for layer in layers}
    for layer in layers:
        assert passes[layer.name] == (
            ["forward", "wgrad"] if layer.is_first else ["forward", "dgrad", "wgrad"]
        )
    assert all(each.seconds > 0 and each.work.flops == 2 * each.layer.flops for each in times)


@pytest.mark.parametrize("name", ["encoder.0.layers.1.conv", "decoder.0.up"])
def test_what_is_timed_is_the_layer(name, monkeypatch):
    (layer,) = (layer for layer in layers_of(UNetConfig(widths=(4, 8)), 3, (8, 12)) if layer.name == name)
    drawn = []
    draw = torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *given, **how: (drawn.append(draw(*given, **how)), drawn[-1])[1]
    )
    calls, work = benchmark._calls(layer, 2, CPU, torch.float32)
    given, gradient, weight = (tensor.clone().requires_grad_() for tensor in drawn)
    out = (
        F.conv_transpose2d(given, weight, stride=2)
        if name.endswith("up")
        else F.conv2d(given, weight, padding=1)
    )
    torch.testing.assert_close(calls["forward"](), out)
    wanted = torch.autograd.grad(out, (given, weight), gradient)
    torch.testing.assert_close(calls["dgrad"]()[0], wanted[0])
    torch.testing.assert_close(calls["wgrad"]()[1], wanted[1])
    assert work.bytes == 4 * (given.numel() + weight.numel() + out.numel())


def test_a_pass_knows_its_share_of_the_roof():
    (layer, *_) = layers_of(UNetConfig(widths=(4, 8)), 3, (8, 12))
    each = PassTime(layer, "forward", Work(1000, 50), seconds=4.0)
    peaks = Peaks(flops=1000.0, bandwidth=100.0)
    assert (each.flops_per_s, each.bytes_per_s, each.intensity, each.share(peaks)) == (250, 12.5, 20, 0.25)
    (record,) = to_mapping([each], peaks)
    assert record["layer"] == "encoder.0.layers.0.conv"
    assert record["ms"] == 4000
    assert record["share_of_roof"] == 0.25
