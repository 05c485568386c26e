import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unetdist.model.blocks import MAX_GROUPS, ConvBlock, ConvNorm, UpBlock, build_norm, initialise


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


def test_bilinear_doubles_as_if_it_convolved_afterwards():
    up = UpBlock(6, 4, num_convs=1, norm="none", residual=False, upsample="bilinear").double()
    x, skip = (
        torch.randn(2, 6, 3, 5, dtype=torch.float64),
        torch.randn(2, 4, 6, 10, dtype=torch.float64),
    )
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
