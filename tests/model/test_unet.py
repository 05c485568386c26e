from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.errors import ConfigError, DataError
from unetdist.model.blocks import DropPath
from unetdist.model.config import UNetConfig, check_norm
from unetdist.model.unet import UNet, crop, pad

MEAN, STD = [110.0, 120.0, 130.0], [50.0, 60.0, 70.0]


def unet(num_classes=5, seed=0, **settings):
    torch.manual_seed(seed)
    config = UNetConfig(**{"widths": (4, 6, 8)} | settings)
    return UNet(config, num_classes, MEAN[: config.in_channels], STD[: config.in_channels])


def pictures(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_classic_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        model = UNet(UNetConfig(preset="classic"), 12, MEAN, STD)
    assert num_parameters(model) == 31_038_348


def test_residual_has_the_parameters_that_its_setting_tells():
    with torch.device("meta"):
        model = UNet(UNetConfig(preset="residual"), 12, MEAN, STD)
    assert num_parameters(model) == 43_583_212


def test_equals_the_textbook_written_out():
    """Two levels, as figure 1 of the paper has them: every operation, in order, from the state dict."""
    model = unet(widths=(4, 6), norm="none").double()
    w = model.state_dict()
    image = pictures(2, 3, 8, 12)

    def convs(x, name):
        for layer in (0, 1):
            conv = f"{name}.layers.{layer}.conv"
            x = F.relu(F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1))
        return x

    x = (image.double() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    skip = convs(x, "encoder.0")
    low = convs(F.max_pool2d(skip, 2), "bottleneck")
    up = F.conv_transpose2d(low, w["decoder.0.up.weight"], w["decoder.0.up.bias"], stride=2)
    x = convs(torch.cat([skip, up], dim=1), "decoder.0.block")
    expected = F.conv2d(x, w["head.weight"], w["head.bias"])
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-12)


def test_state_dict_has_readable_keys():
    keys = set(unet(widths=(4, 6, 8), deep_supervision=True, encoder_convs=1, decoder_convs=1).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = ("encoder.0", "encoder.1", "bottleneck", "decoder.0.block", "decoder.1.block")
    assert keys == {
        "mean",
        "std",
        "head.weight",
        "head.bias",
        "aux_heads.0.weight",
        "aux_heads.0.bias",
        *(f"decoder.{level}.up.{name}" for level in (0, 1) for name in ("weight", "bias")),
        *(f"{block}.layers.0.conv.weight" for block in blocks),
        *(f"{block}.layers.0.norm.{name}" for block in blocks for name in norm),
    }


GRID = list(product(["batch", "sync_batch", "group", "instance", "none"], ["transpose", "bilinear"], [False, True]))


RESIDUAL = {"encoder_blocks": (2, 1, 2), "attention": True, "drop_path": 0.1}
"""What the grid's kinds are tried with too."""


@pytest.mark.parametrize("more", [{}, RESIDUAL], ids=["plain", "more"])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (16, 8)])
@pytest.mark.parametrize(("norm", "upsample", "residual"), GRID)
def test_every_kind_trains_on_any_size(norm, upsample, residual, size, more):
    settings = {"norm": norm, "upsample": upsample, "residual": residual, **more}
    model = unet(deep_supervision=True, dropout=0.1, **settings)
    outputs = model(pictures(1, 3, *size))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 5, *size)] * 2
    sum(logits.square().sum() for logits in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    logits = model.eval()(pictures(1, 3, *size))
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(0, 4), height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]))
def test_any_size_is_the_crop_of_its_padded_self(depth, height, width, channels):
    model = unet(widths=(3,) * (depth + 1), norm="group", in_channels=channels).eval()
    image = pictures(1, channels, height, width)
    logits = model(image)
    assert logits.shape == (1, 5, height, width)
    full = 64
    repeated = F.pad(image.float(), (0, full - width, 0, full - height), mode="replicate")
    factor = 2**depth
    padded_height, padded_width = (max(2 * factor, (size + factor - 1) // factor * factor) for size in (height, width))
    padded = model(repeated[..., :padded_height, :padded_width])
    assert padded.shape == (1, 5, padded_height, padded_width)
    assert torch.equal(padded[..., :height, :width], logits)


def test_convolutions_can_be_given_per_level():
    model = unet(encoder_convs=(1, 2, 3), decoder_convs=(4, 5))
    assert [len(block.layers) for block in model.encoder] == [1, 2]
    assert len(model.bottleneck.layers) == 3
    assert [len(up.block.layers) for up in model.decoder] == [5, 4]


def test_residual_blocks_can_be_given_per_level():
    model = unet(encoder_blocks=(1, 2, 3))
    assert [len(level) for level in (*model.encoder, model.bottleneck)] == [1, 2, 3]
    keys = set(model.state_dict())
    assert {"encoder.0.0.shortcut.conv.weight", "encoder.1.1.layers.1.conv.weight"} <= keys
    assert not any(key.startswith("encoder.1.1.shortcut") for key in keys)
    assert model.decoder[0].block.shortcut is None


def test_drop_path_grows_in_a_line_on_the_way_down():
    model = unet(encoder_blocks=(1, 2, 1), residual=True, drop_path=0.4)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, DropPath)}
    assert list(rates.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0, 0])
    simple = unet(residual=True, drop_path=0.3)
    assert [level.drop_path.p for level in (*simple.encoder, simple.bottleneck)] == pytest.approx([0.1, 0.2, 0.3])


def test_new_options_keep_the_weights_that_a_seed_draws():
    """The sum of all weights of a seed, as it was before there were gates and residual levels."""
    total = sum(parameter.detach().double().sum() for parameter in unet(seed=0, deep_supervision=True).parameters())
    assert float(total) == pytest.approx(51.1309081446816, abs=1e-6)


def test_auxiliary_logits_go_from_fine_to_coarse():
    model = unet(widths=(4, 6, 8, 10), deep_supervision=True, norm="group")
    with torch.no_grad():
        logits, *auxiliary = model(pictures(2, 3, 32, 32))
    assert len(auxiliary) == 2
    roughness = [float(level.diff(dim=2).diff(dim=2).abs().mean() / level.std()) for level in auxiliary]
    assert roughness[0] > 1.5 * roughness[1]
    torch.testing.assert_close(model.eval()(pictures(2, 3, 32, 32)), logits)


def test_mean_and_std_are_in_pixel_units_and_travel_with_the_weights():
    model = unet().eval()
    bare = UNet(model.config, 5, [0, 0, 0], [1, 1, 1]).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}, strict=False)
    image = pictures(2, 3, 9, 9)
    normalised = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(bare(normalised), model(image))
    assert torch.equal(model(image.float()), model(image))
    bare.load_state_dict(model.state_dict())
    assert torch.equal(bare(image), model(image))


def test_a_channel_that_never_varies_is_only_centred():
    model = UNet(UNetConfig(widths=(4, 6), in_channels=4), 2, [*MEAN, 255.0], [*STD, 0.0]).eval()
    opaque = F.pad(pictures(1, 3, 8, 8), (0, 0, 0, 0, 0, 1), value=255)
    assert model(opaque).isfinite().all()


@pytest.mark.parametrize("more", [{}, RESIDUAL], ids=["plain", "more"])
def test_dtype_and_layout_are_kept(more):
    image = pictures(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    model = unet(norm="batch", **more).to(memory_format=torch.channels_last)
    assert model(image).is_contiguous(memory_format=torch.channels_last)
    assert model(image.contiguous()).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(image).dtype == torch.bfloat16
    assert model.double()(image).dtype == torch.float64


@pytest.mark.parametrize("dropped", [{"dropout": 0.5}, {"drop_path": 0.5, "encoder_blocks": 2}], ids=str)
def test_dropout_is_for_training_only(dropped):
    model = unet(norm="group", **dropped)
    image = pictures(1, 3, 16, 16)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


def test_the_same_seed_draws_the_same_weights():
    one, same, other = unet(seed=1), unet(seed=1), unet(seed=2)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # raised inside torch.export
@pytest.mark.parametrize(("traced_size", "more"), [((50, 70), {}), ((48, 64), RESIDUAL)], ids=["plain", "more"])
def test_exports_for_any_size(traced_size, more):
    model = unet(widths=(3, 4, 5), **more).eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (pictures(2, 3, *traced_size),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    exported = program.module()
    for shape in [(1, 3, 1, 1), (2, 3, 17, 33), (1, 3, 32, 48)]:
        torch.testing.assert_close(exported(pictures(*shape)), model(pictures(*shape)))


def test_learns_two_pictures_by_heart():
    """A skip or a layout that is broken could not follow the borders to the pixel."""
    mask = F.interpolate(pictures(2, 1, 4, 4, seed=3).float() // 86, size=(24, 24))[:, 0].long()
    noise = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    image = 80.0 * torch.stack([mask] * 3, dim=1) + 10 * noise
    model = unet(num_classes=3, widths=(8, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(image), mask).backward()
        optimizer.step()
    accuracy = (model.eval()(image).argmax(dim=1) == mask).double().mean()
    assert accuracy > 0.99


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([1.0], [1.0, 1.0, 1.0], r"mean \(\[1.0\]\) must be one finite number .* each of the 3 input channels"),
        ([1.0, 1.0, 1.0], [1.0, -1.0, 1.0], r"std \(\[1.0, -1.0, 1.0\]\) must be .* not negative"),
        ([1.0, float("nan"), 1.0], [1.0, 1.0, 1.0], r"mean \(.*nan.*use those of the training manifest"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        UNet(UNetConfig(widths=(4,)), 2, mean, std)


def test_an_image_with_other_channels_is_refused():
    with pytest.raises(DataError, match="image has 1 channels, the model takes 3; convert the image, or train"):
        unet()(pictures(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 1), (8, 8)), ((3, 9), (8, 12)), ((8, 12), (8, 12)), ((13, 4), (16, 8))]
)
def test_the_last_row_and_column_are_repeated_to_sizes_that_halve_evenly(size, padded):
    x = torch.randn(2, 3, *size)
    out = pad(x, 4)
    assert out.shape == (2, 3, *padded)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        out[..., size[0] - 1 :, :], out[..., size[0] - 1 : size[0], :].expand_as(out[..., size[0] - 1 :, :])
    )
    assert torch.equal(crop(out, *size), x)


def test_presets_give_widths_and_widths_overrule_them():
    assert UNetConfig().level_widths == (16, 32, 64, 128, 256)
    assert UNetConfig(preset="classic").level_widths == (64, 128, 256, 512, 1024)
    assert UNetConfig(preset="classic", widths=(3, 4)).level_widths == (3, 4)


def test_a_preset_may_have_residual_blocks_and_they_can_be_overruled():
    assert UNetConfig().level_blocks is None
    residual = UNetConfig(preset="residual")
    assert (residual.level_widths, residual.level_blocks) == ((32, 64, 128, 256, 512, 512), (1, 2, 2, 4, 4, 2))
    assert UNetConfig(preset="residual", widths=(4,) * 6).level_blocks == (1, 2, 2, 4, 4, 2)
    assert UNetConfig(preset="residual", widths=(4, 8), encoder_blocks=1).level_blocks == 1
    assert not UNetConfig(preset="residual", encoder_blocks=0).level_blocks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": ()}, r"widths has 0 levels, and must have 1 to 16; use "),
        ({"widths": (8, 0)}, r"widths \(\[8, 0\]\) must be channels from 1 to 65536"),
        ({"widths": (8,) * 5000}, r"widths has 5000 levels, and must have 1 to 16"),
        ({"widths": (10**9, 10**9)}, r"widths \(\[1000000000, .* channels from 1 to 65536"),
        ({"encoder_convs": 10**9}, r"encoder_convs \(1000000000\) must be from 1 to 64"),
        ({"in_channels": 10**9}, r"in_channels \(1000000000\) must be from 1 to 65536"),
        ({"encoder_convs": 0}, r"encoder_convs \(0\) must be from 1 to 64, .*; use one number or a list of 5"),
        ({"encoder_convs": (2, 2)}, r"encoder_convs \(\(2, 2\)\) must be .* for 5 widths; .* a list of 5"),
        ({"decoder_convs": (2, 2, 0, 2)}, r"decoder_convs \(.*\) must be from 1 to 64, .* a list of 4"),
        ({"encoder_blocks": (2, 2)}, r"encoder_blocks \(\(2, 2\)\) must be .* for 5 widths; .* a list of 5"),
        ({"encoder_blocks": (1, 0), "widths": (4, 8)}, r"encoder_blocks \(\(1, 0\)\) must be from 1 to 64"),
        ({"preset": "residual", "widths": (8, 16)}, r"encoder_blocks \(\(1, 2, .*for 2 widths; .* a list of 2"),
        ({"drop_path": -0.1}, r"drop_path \(-0.1\) must be at least 0 and below 1; use 0"),
        ({"drop_path": 0.1}, r"drop_path \(0.1\) must have residual blocks to drop; use encoder_blocks: 2"),
        ({"dropout": 1.0}, r"dropout \(1.0\) must be at least 0 and below 1; use 0"),
        ({"pretrained": True}, r"pretrained \(true\) must have a model.encoder; use a name such as"),
        ({"encoder": "resnet34", "decoder_convs": (1, 2, 1, 1)}, r"decoder_convs \(.*\) must be one number with"),
        ({"in_channels": 0}, r"in_channels \(0\) must be from 1 to 65536; use 3 for RGB"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        UNetConfig(**settings)


def test_sync_batch_without_gpus_is_refused():
    config = UNetConfig(norm="sync_batch")
    check_norm(config, device_type="cpu", world_size=1)
    check_norm(config, device_type="cuda", world_size=2)
    check_norm(UNetConfig(norm="batch"), device_type="cpu", world_size=2)
    with pytest.raises(ConfigError, match=r"model.norm \(sync_batch\) must have a GPU .* 2 processes.*; use group"):
        check_norm(config, device_type="cpu", world_size=2)
