"""FLOPs are those that torch counts; images/s those that were worked out by hand for an H200."""

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unetdist.model.limit import H200, Execution, Layer, Peaks, Work, flops_of, layers_of, seconds_of
from unetdist.model.unet import UNet, UNetConfig

OPTIONS = [
    {},
    {"widths": (8,)},
    {"widths": (4, 8, 16, 24), "encoder_convs": (1, 2, 3, 2), "decoder_convs": (3, 1, 2)},
    {"residual": True, "norm": "group"},
    {"upsample": "bilinear", "norm": "none"},
    {"deep_supervision": True, "dropout": 0.1, "norm": "instance"},
    {"in_channels": 1, "residual": True, "deep_supervision": True, "upsample": "bilinear"},
    {"encoder_blocks": (2, 1, 3), "attention": True, "drop_path": 0.1},
    {"widths": (4, 4, 8), "encoder_blocks": 2, "attention": True, "residual": True, "deep_supervision": True},
]


@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flops_are_those_that_torch_counts(options, size):
    config = UNetConfig(**{"widths": (4, 8, 16), **options})
    channels = config.in_channels
    with torch.device("meta"):
        model = UNet(config, 5, mean=[0.0] * channels, std=[1.0] * channels)
        image = torch.empty(2, channels, *size, dtype=torch.uint8)
    layers = layers_of(config, 5, size)
    with FlopCounterMode(display=False) as forward:
        logits = model(image)
    with FlopCounterMode(display=False) as backward:
        sum(level.sum() for level in (logits if isinstance(logits, list) else [logits])).backward()
    assert 2 * sum(layer.flops for layer in layers) == forward.get_total_flops()
    assert 2 * flops_of(layers) == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize(
    ("width", "size", "gflops", "images_per_s"),
    [
        (64, (512, 512), 1156, (634, 475, 378)),
        (64, (480, 352), 745, (980, 736, 584)),
        (32, (512, 512), 290, (2081, 1414, 1009)),
        (16, (512, 512), 73, (5410, 3420, 2224)),
        (16, (480, 352), 47, (8377, 5300, 3446)),
    ],
)
def test_the_limits_are_those_worked_out_by_hand(width, size, gflops, images_per_s):
    layers = layers_of(UNetConfig(widths=tuple(width << level for level in range(5))), 12, size)
    assert round(flops_of(layers) / 1e9) == gflops
    for execution, expected in zip(("ideal", "compiled", "eager"), images_per_s, strict=True):
        assert 32 / seconds_of(layers, execution, batch_size=32) == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_less_fusion_is_never_faster(options):
    layers = layers_of(UNetConfig(**{"widths": (4, 8, 16), **options}), 5, (64, 64))
    ideal, compiled, eager = (
        seconds_of(layers, execution, batch_size=4) for execution in ("ideal", "compiled", "eager")
    )
    assert ideal < compiled < eager


def test_layers_know_their_place():
    layers = {layer.name: layer for layer in layers_of(UNetConfig(widths=(4, 8, 16)), 3, (32, 48))}
    assert next(iter(layers)) == "encoder.0.layers.0.conv"
    assert list(layers)[-1] == "head"
    assert [name for name, layer in layers.items() if layer.is_first] == ["encoder.0.layers.0.conv"]
    assert [name for name, layer in layers.items() if layer.is_skip] == [
        "encoder.0.layers.1.conv",
        "encoder.1.layers.1.conv",
    ]
    assert [name for name, layer in layers.items() if layer.is_pooled] == [
        "encoder.1.layers.0.conv",
        "bottleneck.layers.0.conv",
    ]
    assert layers["decoder.0.up"] == Layer(
        name="decoder.0.up",
        kind="up",
        in_shape=(16, 8, 12),
        out_shape=(8, 16, 24),
        kernel_size=2,
        is_normed=False,
        is_first=False,
        is_pooled=False,
        is_skip=False,
    )


@pytest.mark.parametrize("execution", get_args(Execution))
@pytest.mark.parametrize(
    "options", [{"residual": True}, {"deep_supervision": True}, {"attention": True}], ids=str
)
def test_what_options_add_is_counted(execution, options):
    plain, more = (
        sum(work.bytes for layer in layers for work in layer.kernels(execution, 4))
        for layers in (
            layers_of(UNetConfig(widths=(8, 8, 16), **given), 4, (64, 64)) for given in ({}, options)
        )
    )
    assert more > plain


def test_a_relu_without_a_norm_is_a_kernel_of_its_own():
    layer, *_ = layers_of(UNetConfig(widths=(8, 16), norm="none"), 4, (64, 64))
    between = list(layer.kernels("compiled", batch_size=2))[-1]
    assert between == Work(0, 5 * 2 * 8 * 64 * 64 * 2)


def test_layers_of_options_know_their_place():
    layers = layers_of(
        UNetConfig(widths=(4, 8, 16), residual=True, upsample="bilinear", deep_supervision=True), 3, (32, 32)
    )
    assert {layer.name for layer in layers if layer.is_shortcut} == {
        f"{block}.shortcut.conv"
        for block in ("encoder.0", "encoder.1", "bottleneck", "decoder.0.block", "decoder.1.block")
    }
    assert [layer.name for layer in layers if layer.adds_shortcut] == [
        f"{block}.layers.1.conv"
        for block in ("encoder.0", "encoder.1", "bottleneck", "decoder.0.block", "decoder.1.block")
    ]
    assert {layer.name: layer.scale for layer in layers if layer.scale > 1} == {
        "decoder.0.up": 2,
        "decoder.1.up": 2,
        "aux_heads.0": 2,
    }


def test_layers_of_residual_levels_and_gates_know_their_place():
    config = UNetConfig(widths=(4, 8, 8), encoder_blocks=2, attention=True)
    layers = {layer.name: layer for layer in layers_of(config, 3, (32, 32))}
    levels = ("encoder.0", "encoder.1", "bottleneck")
    assert {name for name, layer in layers.items() if layer.is_first} == {
        "encoder.0.0.layers.0.conv",
        "encoder.0.0.shortcut.conv",
    }
    assert {name for name, layer in layers.items() if layer.is_pooled} == {
        "encoder.1.0.layers.0.conv",
        "encoder.1.0.shortcut.conv",
        "bottleneck.0.layers.0.conv",
    }
    assert {name for name, layer in layers.items() if layer.is_skip} == {
        f"{level}.1.layers.1.conv" for level in levels[:2]
    }
    assert {name for name, layer in layers.items() if layer.adds_shortcut} == {
        f"{level}.{block}.layers.1.conv" for level in levels for block in (0, 1)
    }
    gates = {name: layer for name, layer in layers.items() if ".gate." in name}
    assert [layer.num_gated for layer in gates.values()] == [0, 0, 4 * 8, 0, 0, 4 * 4]
    assert not any(layer.is_normed for layer in gates.values())


def test_nothing_is_computed_or_drawn(monkeypatch):
    def refuse(*_):
        raise AssertionError("it runs on GPUs only, as soon as there are several processes")

    monkeypatch.setattr(torch.nn.SyncBatchNorm, "forward", refuse)
    state = torch.get_rng_state()
    layers = layers_of(UNetConfig(preset="classic", norm="sync_batch", dropout=0.5), 3, (4000, 6000))
    assert torch.equal(torch.get_rng_state(), state)
    assert layers == layers_of(UNetConfig(preset="classic"), 3, (4000, 6000))


def test_a_kernel_takes_what_its_larger_part_takes():
    peaks = Peaks(flops=100.0, bandwidth=10.0)
    assert Work(200, 5).seconds(peaks) == 2
    assert Work(20, 50).seconds(peaks) == 5
    assert H200.flops > H200.bandwidth
