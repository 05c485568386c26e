import pytest
import torch

from tests.benchmarks.loops.files import MEAN, STD
from tests.benchmarks.loops.network import build_adamw, build_network, compile_on_gpu
from tests.benchmarks.loops.test_protocol import JOB


def test_everybody_has_the_same_weights_in_the_layout_asked_for():
    last, first = (build_network(JOB, channels_last=value) for value in (True, False))
    for one, other in zip(last.parameters(), first.parameters(), strict=True):
        assert torch.equal(one, other)
    is_wide = [p.ndim == 4 and min(p.shape[1:]) > 1 for p in last.parameters()].index(True)
    assert list(first.parameters())[is_wide].is_contiguous()
    assert list(last.parameters())[is_wide].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_everything_inside_has_that_layout_too(channels_last, size):
    network = build_network(JOB, channels_last=channels_last)
    layouts = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels > 1:
            module.register_forward_hook(lambda _module, _given, out: layouts.add(out.is_contiguous()))
    logits = network(torch.rand(2, 3, *size))
    assert logits.shape == (2, 2, *size)
    assert layouts == {not channels_last}


def test_normalising_inside_and_outside_is_the_same():
    inside = build_network(JOB, channels_last=True, normalises=True).eval()
    outside = build_network(JOB, channels_last=True).eval()
    pixels = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(inside(pixels), outside((pixels - mean) / std))


def test_no_compiler_and_nothing_fused_on_a_cpu():
    network = build_network(JOB, channels_last=True)
    if JOB.device.type == "cpu":
        assert compile_on_gpu(network, JOB) is network
        assert build_adamw(network, JOB, fused=True).defaults["fused"] is None
