"""The subcommand `layers`: every convolution of a network alone, forward and both gradients, under the device's roofs.

Beside it what a whole training step takes at least, by `unetdist.model.limit`. All numbers go to OUT/layers.json, and
a roofline plot to OUT/layers.png.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from PIL import Image
from rich import box
from rich.console import Console, Group
from rich.table import Table

from tests.benchmarks.arguments import add_out, positive
from tests.benchmarks.layers import PASSES, PassTime, time_layers, to_mapping
from tests.benchmarks.peaks import DTYPES, measure_peaks
from tests.benchmarks.roofline import draw_roofline
from unetdist.cli.logs import logger
from unetdist.model.config import Preset, UNetConfig
from unetdist.model.limit import Execution, Layer, Peaks, flops_of, layers_of, seconds_of
from unetdist.storage.files import write_atomic, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand understands."""
    add = parser.add_argument
    add("--preset", choices=get_args(Preset), default="student", help="widths by name (%(default)s)")
    add("--widths", type=positive, nargs="+", metavar="N", help="channels of each level instead")
    add("--size", type=positive, nargs=2, default=(352, 480), metavar=("H", "W"), help="(352 480)")
    add("--batch-size", type=positive, default=32, metavar="N", help="(%(default)s)")
    add("--classes", type=positive, default=12, metavar="N", help="(%(default)s)")
    add("--precision", choices=DTYPES, help="default: bf16 on a GPU, fp32 elsewhere")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure, print, draw."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    config = UNetConfig(preset=args.preset, widths=tuple(args.widths) if args.widths else None)
    layers = layers_of(config, args.classes, tuple(args.size))
    peaks = measure_peaks(device, precision)
    torch.backends.cudnn.benchmark = True
    times = time_layers(layers, batch_size=args.batch_size, device=device, precision=precision)
    limits = _limits(layers, args.batch_size, peaks, DTYPES[precision].itemsize)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else facts["cpu"]
    title = (
        f"U-Net {'-'.join(map(str, config.level_widths))}, {args.size[1]}x{args.size[0]}, "
        f"batch {args.batch_size}, {precision}"
    )
    record = {
        **facts,
        "device": where,
        "network": title,
        "peaks": {"flops": peaks.flops, "bandwidth": peaks.bandwidth},
        "gflop_per_image": flops_of(layers) / 1e9,
        "limit_images_per_s": limits,
        "passes": to_mapping(times, peaks),
    }
    write_json(args.out / "layers.json", record)
    caption = f"{where}, {facts['date'][:10]}, commit {facts['commit']}"
    with write_atomic(args.out / "layers.png") as file:
        Image.fromarray(draw_roofline(times, peaks, title, caption)).save(file, "PNG")
    Console().print(Group(title, _table(times, peaks), _summary(layers, times, peaks, limits)))
    logger.info("all numbers are in %s, a plot in %s", args.out / "layers.json", args.out / "layers.png")


def _limits(layers: Sequence[Layer], batch_size: int, peaks: Peaks, value_bytes: int) -> dict[str, float]:
    """Images/s of training at most, by how much is fused."""
    return {
        execution: batch_size
        / seconds_of(layers, execution, batch_size=batch_size, peaks=peaks, value_bytes=value_bytes)
        for execution in get_args(Execution)
    }


def _table(times: Sequence[PassTime], peaks: Peaks) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for heading in ("layer", "channels", "pass"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "TFLOP/s", "GB/s", "of roof"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in times:
        layer = each.layer
        label = (layer.name.removesuffix(".conv"), f"{layer.in_shape[0]} > {layer.out_shape[0]}")
        table.add_row(
            *(label if each.name == PASSES[0] else ("", "")),
            each.name,
            f"{1000 * each.seconds:.3f}",
            f"{each.flops_per_s / 1e12:.3g}",
            f"{each.bytes_per_s / 1e9:.0f}",
            f"{each.share(peaks):.2f}",
        )
    return table


def _summary(
    layers: Sequence[Layer], times: Sequence[PassTime], peaks: Peaks, limits: Mapping[str, float]
) -> str:
    spent, least = sum(each.seconds for each in times), sum(each.work.seconds(peaks) for each in times)
    speeds = ", ".join(f"{execution} {speed:.4g}" for execution, speed in limits.items())
    return (
        f"peaks: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bandwidth / 1e9:.0f} GB/s; "
        f"convolutions: {1000 * spent:.1f} ms, at least {1000 * least:.1f} ms ({least / spent:.2f})\n"
        f"{flops_of(layers) / 1e9:.1f} GFLOP an image; training at most, images/s: {speeds}"
    )
