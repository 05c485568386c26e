"""The subcommand `train`: images/s of training loops, ours beside what people would write instead.

Every loop trains the same network on the same pictures in a process of its own; they take turns. Beside speeds: where
the time of a step goes, the share of what the device could do by peaks measured in the same run, memory. A loop whose
packages are missing, or whose loss is not that of the others, is void, and the others go on.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from rich.console import Console

from tests.benchmarks.arguments import add_out, positive, positive_seconds
from tests.benchmarks.chart import draw_sheet
from tests.benchmarks.data import choose
from tests.benchmarks.loops.everybody import EVERYBODY, ON_GPU
from tests.benchmarks.peaks import measure_peaks
from tests.benchmarks.source import Pictures
from tests.benchmarks.train import TrainCase, TrainPlan, TrainResult, run_case
from tests.benchmarks.train_report import Limit, panel, tables, to_mapping
from unetdist.cli.logs import logger
from unetdist.model.config import PRESETS, Preset
from unetdist.storage.files import write_atomic, write_json

CASES_ON_GPU = ("classic:512x512:32", "student:480x352:32", "student:480x352:2")
CASES_ON_CPU = ("student:128x96:4",)
WIDTH = 150
"""Characters of the table where nobody says how wide it may be."""

PRECISIONS = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand understands."""
    has_gpu = torch.cuda.is_available()
    cases = CASES_ON_GPU if has_gpu else CASES_ON_CPU
    add = parser.add_argument
    add("--against", default="all", metavar="NAMES", help="all, or names with commas between (all)")
    add("--images", type=Path, metavar="DIR", help="pictures; default: the built-in shapes")
    add("--masks", type=Path, metavar="DIR", help="their masks")
    add("--labels", type=Path, metavar="FILE", help="colours and names of the classes")
    add(
        "--cases",
        type=parse_train_case,
        nargs="+",
        default=[parse_train_case(case) for case in cases],
        metavar="PRESET:WxH:BATCH",
        help=f"network, crop, batch ({' '.join(cases)})",
    )
    add(
        "--precisions",
        type=parse_precisions,
        default=("bf16", "fp16") if has_gpu else ("fp32",),
        metavar="NAMES",
        help="fp32, bf16, fp16, with commas between; ours has the first (bf16,fp16; fp32 without a GPU)",
    )
    add("--workers", type=int, default=default_workers(), metavar="N", help="of each loop (%(default)s)")
    add("--samples", type=positive, default=2000, metavar="N", help="pictures (%(default)s)")
    add("--rounds", type=positive, default=8, metavar="N", help="that count (%(default)s)")
    add("--seconds", type=positive_seconds, default=1.0, help="of a loop's round (%(default)s)")
    add("--check-steps", type=positive, default=50, metavar="N", help="whose loss is compared (%(default)s)")
    add("--on-device", action="store_true", help="batches of the device's memory: loops without data path")
    add("--cold", action="store_true", help="let nobody find what was compiled before: true first steps")
    add("--peers-python", default=sys.executable, metavar="PATH", help="python that has the others' packages")
    add("--work", type=Path, default=Path("runs/benchmark/work"), metavar="DIR", help="(%(default)s)")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure and print; all numbers go to OUT/train.json, and a chart to OUT/train.png."""
    has_gpu = torch.cuda.is_available()
    plan = TrainPlan(
        work=args.work.absolute() / "train",
        peers_python=args.peers_python,
        against=choose(args.against, tuple(each for each in EVERYBODY if has_gpu or each not in ON_GPU)),
        precisions=args.precisions,
        num_workers=args.workers,
        num_samples=args.samples,
        num_rounds=args.rounds,
        seconds=args.seconds,
        check_steps=args.check_steps,
        on_device=args.on_device,
        is_cold=args.cold,
    )
    pictures = Pictures(args.images, args.masks, args.labels)
    device = "cuda" if has_gpu else "cpu"
    peaks = {precision: measure_peaks(device, precision) for precision in plan.precisions}
    torch.cuda.empty_cache()  # The loops need the memory.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    name = torch.cuda.get_device_name() if device == "cuda" else facts["cpu"]
    record = {**facts, "device": name, "torch": torch.__version__, "pictures": pictures.name}
    record["workers"] = plan.num_workers
    cases: list[dict[str, Any]] = []
    panels = []

    def limits_of(result: TrainResult) -> dict[str, Limit]:
        return {
            precision: Limit.of(result.case, result.num_classes, precision, peaks[precision])
            for precision in plan.precisions
        }

    def keep(result: TrainResult) -> None:
        # At every step of a case: a benchmark that is cut short leaves what it knew.
        write_json(
            args.out / "train.json", {**record, "cases": [*cases, to_mapping(result, limits_of(result))]}
        )

    for case in args.cases:
        result = run_case(case, pictures, plan, keep)
        keep(result)
        limits = limits_of(result)
        cases.append(to_mapping(result, limits))
        panels.append(panel(result, limits))
        caption = f"{name}, {facts['cores']} cores, {facts['date'][:10]}, commit {facts['commit']}"
        with write_atomic(args.out / "train.png") as file:
            Image.fromarray(draw_sheet(panels, caption)).save(file, "PNG")
        console.print(tables(result, limits))
    logger.info("all numbers are in %s, a chart in %s", args.out / "train.json", args.out / "train.png")


def parse_train_case(text: str) -> TrainCase:
    """PRESET:WxH:BATCH, as in student:480x352:32."""
    match = re.fullmatch(r"(\w+):([1-9]\d*)x([1-9]\d*):([1-9]\d*)", text)
    if match is None or match[1] not in get_args(Preset):
        raise argparse.ArgumentTypeError(
            f"invalid PRESET:WxH:BATCH value: {text!r}; use student:480x352:32 (presets: {', '.join(PRESETS)})"
        )
    preset: Preset = match[1]  # type: ignore[assignment]
    return TrainCase(preset, int(match[2]), int(match[3]), int(match[4]))


def parse_precisions(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    names = tuple(text.split(","))
    if not set(names) <= set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"invalid precisions: {text!r}; use {','.join(PRECISIONS)}")
    return names


def default_workers() -> int:
    """As many as there are cores beside the loop's own, at most 12."""
    return max(1, min(12, len(os.sched_getaffinity(0)) - 1))
