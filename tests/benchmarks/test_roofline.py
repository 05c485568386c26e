"""FLOPs are those that torch counts; images/s are those worked out by hand for an H200."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.roofline import Peaks, flops_of, layers_of, seconds_of
from unetdist.model.config import UNetConfig
from unetdist.model.unet import UNet

OPTIONS = [
    {"widths": (8,)},
    {"widths": (4, 8, 16, 24), "encoder_convs": (1, 2, 3, 2), "decoder_convs": (3, 1, 2), "norm": "instance"},
    {"in_channels": 1, "residual": True, "deep_supervision": True, "upsample": "bilinear", "norm": "none"},
    {"encoder_blocks": (2, 1, 3), "attention": True, "drop_path": 0.1, "dropout": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flops_are_those_that_torch_counts(options):
    config = UNetConfig(**{"widths": (4, 8, 16), **options})
    with torch.device("meta"):
        model = UNet(config, 5, mean=[0.0] * config.in_channels, std=[1.0] * config.in_channels)
        image = torch.empty(2, config.in_channels, 33, 50, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        logits = model(image)
        sum(level.sum() for level in (logits if isinstance(logits, list) else [logits])).backward()
    assert 2 * flops_of(layers_of(config, 5, (33, 50))) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("width", "size", "gflops", "images_per_s"),
    [(64, (512, 512), 1156, (475, 378)), (16, (480, 352), 47, (5300, 3446))],
)
def test_the_limits_are_those_worked_out_by_hand(width, size, gflops, images_per_s):
    layers = layers_of(UNetConfig(widths=tuple(width << level for level in range(5))), 12, size)
    assert round(flops_of(layers) / 1e9) == gflops
    ideal, compiled, eager = (
        32 / seconds_of(layers, execution, batch_size=32) for execution in ("ideal", "compiled", "eager")
    )
    assert (compiled, eager) == pytest.approx(images_per_s, rel=0.012)
    assert ideal > 1.2 * compiled


def test_a_kernel_takes_what_its_larger_part_takes():
    peaks = Peaks(flops=100.0, bandwidth=10.0)
    assert peaks.seconds(200, 5) == 2
    assert peaks.seconds(20, 50) == 5


def test_nothing_is_computed_or_drawn():
    state = torch.get_rng_state()
    layers = layers_of(UNetConfig(preset="classic", norm="sync_batch", dropout=0.5), 3, (4000, 6000))
    assert torch.equal(torch.get_rng_state(), state)
    assert layers == layers_of(UNetConfig(preset="classic"), 3, (4000, 6000))
