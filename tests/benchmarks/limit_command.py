"""The subcommand `limit`: how fast training can be on a device with given peaks, without measuring anything.

Without --peaks those of an H200, so that a network can be planned on a laptop. `unetdist.model.limit` says what is
counted. All numbers go to OUT/limit.json.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.arguments import add_out, positive
from tests.benchmarks.peaks import DTYPES
from unetdist.cli.logs import logger
from unetdist.model.limit import H200, Execution, Peaks, flops_of, layers_of, seconds_of
from unetdist.model.unet import UNetConfig
from unetdist.storage.files import write_json

CASES = ("64:512x512", "64:352x480", "32:512x512", "16:512x512", "16:352x480")
LEVELS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand understands."""
    add = parser.add_argument
    add(
        "--cases",
        type=parse_limit_case,
        nargs="+",
        default=[parse_limit_case(case) for case in CASES],
        metavar="WIDTHS:HxW",
        help=f"channels of each level, or of the first of {LEVELS}, and size ({' '.join(CASES)})",
    )
    add("--batch-size", type=positive, default=32, metavar="N", help="(%(default)s)")
    add("--classes", type=positive, default=12, metavar="N", help="(%(default)s)")
    add("--precision", choices=DTYPES, default="bf16", help="(%(default)s)")
    add(
        "--peaks",
        type=parse_peaks,
        default=H200,
        metavar="TFLOP/s,GB/s",
        help="of the device; default: 788,4300, an H200 in bf16; `layers` measures them",
    )
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Count, print, write."""
    rows = [
        limits_of(config, size, args.batch_size, args.classes, args.peaks, DTYPES[args.precision].itemsize)
        for config, size in args.cases
    ]
    record = {
        **facts,
        "peaks": {"flops": args.peaks.flops, "bandwidth": args.peaks.bandwidth},
        "batch_size": args.batch_size,
        "num_classes": args.classes,
        "precision": args.precision,
        "cases": rows,
    }
    write_json(args.out / "limit.json", record)
    Console().print(_table(rows, _title(args)))
    logger.info("all numbers are in %s", args.out / "limit.json")


def limits_of(
    config: UNetConfig,
    size: tuple[int, int],
    batch_size: int,
    num_classes: int,
    peaks: Peaks,
    value_bytes: int,
) -> dict[str, Any]:
    """FLOPs of training on one image of `size` (height, width), and images/s at most, by how much is fused."""
    layers = layers_of(config, num_classes, size)
    return {
        "widths": list(config.level_widths),
        "size": list(size),
        "gflop_per_image": flops_of(layers) / 1e9,
        "images_per_s": {
            execution: batch_size
            / seconds_of(layers, execution, batch_size=batch_size, peaks=peaks, value_bytes=value_bytes)
            for execution in get_args(Execution)
        },
    }


def parse_limit_case(text: str) -> tuple[UNetConfig, tuple[int, int]]:
    """WIDTHS:HxW, as in 16:352x480 or 16,32,64:352x480."""
    match = re.fullmatch(r"([1-9]\d*(?:,[1-9]\d*)*):([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"invalid WIDTHS:HxW value: {text!r}; use 16:352x480 or 16,32,64:352x480"
        )
    widths = tuple(map(int, match[1].split(",")))
    if len(widths) == 1:
        widths = tuple(widths[0] << level for level in range(LEVELS))
    return UNetConfig(widths=widths), (int(match[2]), int(match[3]))


def parse_peaks(text: str) -> Peaks:
    """TFLOP/s,GB/s, as in 788,4300."""
    try:
        tflops, gbytes = map(float, text.split(","))
    except ValueError:
        tflops = gbytes = math.nan
    if not (0 < tflops < math.inf and 0 < gbytes < math.inf):
        raise argparse.ArgumentTypeError(f"invalid TFLOP/s,GB/s value: {text!r}; use 788,4300")
    return Peaks(tflops * 1e12, gbytes * 1e9)


def _title(args: argparse.Namespace) -> str:
    peaks = f"{args.peaks.flops / 1e12:g} TFLOP/s, {args.peaks.bandwidth / 1e9:g} GB/s"
    return f"images/s of training at most: batch {args.batch_size}, {args.precision}, {peaks}"


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table("widths", "HxW", title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("GFLOP/image", *get_args(Execution)):
        table.add_column(heading, justify="right")
    for row in rows:
        height, width = row["size"]
        table.add_row(
            "-".join(map(str, row["widths"])),
            f"{height}x{width}",
            f"{row['gflop_per_image']:.4g}",
            *(f"{speed:.4g}" for speed in row["images_per_s"].values()),
        )
    return table
