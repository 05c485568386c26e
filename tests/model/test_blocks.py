import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unetdist.model.blocks import (
    MAX_GROUPS,
    AttentionGate,
    ConvBlock,
    ConvNorm,
    DropPath,
    UpBlock,
    build_norm,
    initialise,
)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("batch", nn.BatchNorm2d),
        ("sync_batch", nn.SyncBatchNorm),
        ("group", nn.GroupNorm),
        ("instance", nn.InstanceNorm2d),
        ("none", nn.Identity),
    ],
)
def test_norm_by_name(norm, kind):
    assert type(build_norm(norm, 12)) is kind


@pytest.mark.parametrize("channels", [1, 3, 4, 12, 16, 20, 64])
def test_group_norm_takes_any_number_of_channels(channels):
    norm = build_norm("group", channels)
    assert norm.num_groups <= MAX_GROUPS
    assert norm(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_norms_have_scale_and_shift_and_leave_none_to_the_convolution(norm):
    part = ConvNorm(3, 8, kernel_size=3, norm=norm)
    assert {name for name, _ in part.named_parameters()} == {"conv.weight", "norm.weight", "norm.bias"}
    bare = ConvNorm(3, 8, kernel_size=3, norm="none")
    assert {name for name, _ in bare.named_parameters()} == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize("num_convs", [1, 2, 3])
def test_block_has_as_many_convolutions_as_asked_for(num_convs):
    block = ConvBlock(3, 8, num_convs=num_convs, norm="batch", residual=False)
    widths = [(m.in_channels, m.out_channels) for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [(3, 8), *[(8, 8)] * (num_convs - 1)]


@pytest.mark.parametrize("in_channels", [8, 3])
def test_residual_adds_the_input_before_the_last_relu(in_channels):
    block = ConvBlock(in_channels, 8, num_convs=2, norm="none", residual=True)
    plain = ConvBlock(in_channels, 8, num_convs=2, norm="none", residual=False)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("shortcut")})
    x = torch.randn(2, in_channels, 5, 6)
    first, last = plain.layers
    convolved = last(F.relu(first(x)))
    assert torch.equal(plain(x), F.relu(convolved))
    assert torch.equal(block(x), F.relu(convolved + block.shortcut(x)))
    if in_channels == 8:
        assert torch.equal(block.shortcut(x), x)


def test_a_sample_is_dropped_whole_or_kept_at_its_mean():
    torch.manual_seed(0)
    x = torch.randn(4000, 2, 3, 1)
    out = DropPath(0.25)(x)
    dropped = (out == 0).all(dim=(1, 2, 3))
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(out[~dropped], x[~dropped] / 0.75)
    assert DropPath(0.25).eval()(x) is x


def test_without_drop_path_no_number_is_drawn():
    block = ConvBlock(3, 3, num_convs=2, norm="group", residual=True)
    state = torch.get_rng_state()
    block(torch.randn(2, 3, 4, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dropped_block_leaves_its_input():
    torch.manual_seed(0)
    block = ConvBlock(4, 4, num_convs=2, norm="group", residual=True, drop_path=0.5)
    x = torch.rand(64, 4, 3, 3)
    unchanged = (block(x) == x).all(dim=(1, 2, 3))
    assert 10 < unchanged.sum() < 54


def test_a_gate_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    gate = AttentionGate(6, 10).double()
    skip, coarse = torch.randn(2, 6, 8, 4).double(), torch.randn(2, 10, 4, 2).double()
    w = gate.state_dict()
    inner = F.conv2d(skip, w["skip.weight"], stride=2) + F.conv2d(coarse, w["coarse.weight"], w["coarse.bias"])
    weight = F.conv2d(F.relu(inner), w["weight.weight"], w["weight.bias"])
    weight = F.interpolate(weight, size=(8, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gate(skip, coarse), skip * torch.sigmoid(weight))
    assert gate.skip.out_channels == 3


def test_a_step_up_joins_what_the_gate_lets_through():
    torch.manual_seed(0)
    gated = UpBlock(6, 4, num_convs=1, norm="none", residual=False, upsample="transpose", attention=True)
    plain = UpBlock(6, 4, num_convs=1, norm="none", residual=False, upsample="transpose")
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate.")})
    x, skip = torch.randn(2, 6, 3, 5), torch.randn(2, 4, 6, 10)
    assert torch.equal(gated(x, skip), plain(x, gated.gate(skip, x)))


def test_bilinear_doubles_as_if_it_convolved_afterwards():
    up = UpBlock(6, 4, num_convs=1, norm="none", residual=False, upsample="bilinear").double()
    x, skip = (torch.randn(2, 6, 3, 5, dtype=torch.float64), torch.randn(2, 4, 6, 10, dtype=torch.float64))
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = up.block(torch.cat([skip, F.conv2d(doubled, up.up.weight, up.up.bias)], dim=1))
    torch.testing.assert_close(up(x, skip), expected, rtol=0, atol=1e-12)


def test_initial_weights_follow_he():
    torch.manual_seed(0)
    up = UpBlock(64, 32, num_convs=2, norm="batch", residual=True, upsample="transpose")
    initialise(up)
    for conv in (module for module in up.modules() if isinstance(module, nn.Conv2d)):
        fan_in = conv.in_channels * math.prod(conv.kernel_size)
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    assert up.up.weight.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.05)
    assert not up.up.bias.any()


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_initial_weights_keep_the_signal_without_a_norm(upsample):
    torch.manual_seed(0)
    blocks = nn.ModuleList(
        UpBlock(64, 64, num_convs=2, norm="none", residual=False, upsample=upsample) for _ in range(6)
    )
    initialise(blocks)
    x = torch.randn(1, 64, 2, 2)
    for block in blocks:
        skip = torch.randn(1, 64, 2 * x.shape[2], 2 * x.shape[3])
        x = block(x, skip)
    assert 0.1 < x.square().mean() < 10
