"""Images/s of training: our loop and the loops that people write, around the same network and pictures.

Each loop runs in a fresh process in every round. A loop whose loss after --check-steps steps differs from the others'
is void. Beside the rates: the first step, peak memory, and the fraction of the device's limit (see `limits`).
"""

import argparse
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from tests.benchmarks.data_contenders import Job, write_our_shards
from tests.benchmarks.harness import (
    OURS,
    Contender,
    Results,
    add_measuring,
    add_peers_python,
    choose,
    positive,
    print_table,
    run_child,
    write_results,
)
from tests.benchmarks.limits import measure_peaks
from tests.benchmarks.pictures import Size, add_pictures, palette_of, write_pictures
from tests.benchmarks.roofline import Peaks, flops_of, layers_of, seconds_of
from tests.benchmarks.train_contenders import DTYPES, TrainJob
from unetdist.model.config import PRESETS, Preset, UNetConfig

CONTENDERS = (
    Contender(OURS, "ours"),
    Contender("ours-off", "ours, performance: off"),
    Contender("accelerate", "Accelerate, its defaults"),
    Contender("lightning", "Lightning, best flags", ("lightning",)),
    Contender("milesial", "as milesial/Pytorch-UNet"),
    Contender("careful", "the best a careful user would write"),
)
# Ours with a part of the fast path added or removed, whatever the facts of the run say.
ON_GPU = (Contender("ours-graphs", "ours, with CUDA graphs"), Contender("ours-no-graphs", "ours, without CUDA graphs"))

# Pictures are larger than the crop by so much, so that the crop is random.
MARGIN_PX = 8

# A loss is off if it is more than this many times the median of all, or less than that part of it, and this much.
LOSS_FACTOR, LOSS_SLACK = 1.25, 0.05


@dataclass(frozen=True)
class TrainCase:
    """Network, size of the crop, batch."""

    preset: Preset
    width: int
    height: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.preset}:{self.width}x{self.height}:{self.batch_size}"


def parse_train_case(text: str) -> TrainCase:
    """PRESET:WxH:BATCH."""
    found = re.fullmatch(r"(\w+):([1-9]\d*)x([1-9]\d*):([1-9]\d*)", text)
    if found is None or found[1] not in get_args(Preset):
        presets = ", ".join(PRESETS)
        raise argparse.ArgumentTypeError(
            f"invalid PRESET:WxH:BATCH value: {text!r}; use student:480x352:32 (presets: {presets})"
        )
    return TrainCase(found[1], *map(int, found.groups()[1:]))  # type: ignore[arg-type]


def default_workers() -> int:
    """One process per core but the loop's own, 12 at most."""
    return max(1, min(12, len(os.sched_getaffinity(0)) - 1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    has_gpu = torch.cuda.is_available()
    cases = ("classic:512x512:32", "student:480x352:32", "student:480x352:2") if has_gpu else ("student:128x96:4",)
    add_peers_python(parser)
    add_pictures(parser)
    add = parser.add_argument
    add(
        "--cases",
        type=parse_train_case,
        nargs="+",
        default=list(map(parse_train_case, cases)),
        metavar="PRESET:WxH:BATCH",
        help=f"network, crop, batch ({' '.join(cases)})",
    )
    add("--precision", choices=DTYPES, default="bf16" if has_gpu else "fp32", help="(%(default)s)")
    add("--workers", type=int, default=default_workers(), metavar="N", help="worker processes (%(default)s)")
    add("--seconds", type=float, default=5.0, metavar="S", help="length of a loop's round (%(default)s)")
    add("--check-steps", type=positive, default=50, metavar="N", help="steps of the loss check (%(default)s)")
    add_measuring(parser, rounds=6, samples=400)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Check and measure every case; the JSON is kept up to date, so that a run that is cut short leaves numbers."""
    has_gpu = torch.cuda.is_available()
    chosen = choose(args.against, CONTENDERS[1:] + (ON_GPU if has_gpu else ()))
    peaks = measure_peaks(torch.device("cuda" if has_gpu else "cpu"), args.precision)
    torch.cuda.empty_cache()  # The loops need the memory.
    cases: list[Results] = []
    more = {"device": torch.cuda.get_device_name() if has_gpu else facts["cpu"], "torch": torch.__version__}
    more |= {"workers": args.workers, "precision": args.precision, "peaks": asdict(peaks)}
    columns = {
        "of limit": lambda row: f"{row['images_per_s']['median'] / row['limit_images_per_s']:.2f}",
        "first step": lambda row: f"{row['first_step_s']:.1f} s",
        "MiB": lambda row: f"{row['peak_mib']:.0f}",
    }

    def keep() -> None:
        write_results(args.out, "train", facts, cases, **more)

    for case in args.cases:
        cases.append(Results(f"{case} {args.precision}", [CONTENDERS[0], *chosen]))
        limit = limit_of(case, args.precision, peaks)
        measure(args, case, cases[-1], limit, keep)
        print_table(cases[-1], columns)


def measure(
    args: argparse.Namespace, case: TrainCase, results: Results, limit: Mapping[str, float], keep: Callable[[], object]
) -> None:
    """Write pictures and shards, check the losses, run the rounds."""
    folder = args.work.absolute() / "train" / f"{case.width}x{case.height}"
    size = Size(case.width + MARGIN_PX, case.height + MARGIN_PX)
    write_pictures(folder / "pictures", args, size, args.samples)
    pictures = Job(str(folder / "pictures"), str(folder / "formats"), min(case.width, case.height), case.batch_size)
    job = TrainJob(
        pictures=pictures.pictures,
        shards=write_our_shards(pictures),
        height=case.height,
        width=case.width,
        batch_size=case.batch_size,
        num_classes=palette_of(args).num_classes,
        widths=list(PRESETS[case.preset]),
        precision=args.precision,
        num_workers=args.workers,
    )

    def child(contender: Contender, what: str, **arguments: Any) -> dict[str, Any]:
        return run_child(
            f"tests.benchmarks.train_contenders:{what}",
            {"name": contender.name, "job": asdict(job), **arguments},
            python=args.peers_python if contender.packages else sys.executable,
            log=folder / "logs" / f"{contender.name}.log",
        )

    def check(contender: Contender) -> dict[str, Any]:
        found = child(contender, "check", steps=args.check_steps, packages=["torch", "accelerate", *contender.packages])
        results.facts[contender.name] = {**found, **limit}
        keep()
        return results.facts[contender.name]

    results.check(check)
    for name, problem in loss_problems({name: found["loss"] for name, found in results.facts.items()}).items():
        results.reject(name, problem)
    results.measure(lambda contender: child(contender, "measure", seconds=args.seconds), args.rounds, keep)


def loss_problems(losses: Mapping[str, float]) -> dict[str, str]:
    """Why the loss of a contender is off, by name."""
    usual = statistics.median([loss for loss in losses.values() if math.isfinite(loss)] or [math.nan])
    low, high = usual / LOSS_FACTOR - LOSS_SLACK, usual * LOSS_FACTOR + LOSS_SLACK
    return {
        name: f"its loss after --check-steps is {loss:.3f}; the median of all is {usual:.3f}"
        for name, loss in losses.items()
        if not low <= loss <= high
    }


def limit_of(case: TrainCase, precision: str, peaks: Peaks) -> dict[str, float]:
    """Images/s that the device allows, and the FLOPs of an image."""
    layers = layers_of(UNetConfig(preset=case.preset), 12, (case.height, case.width))
    value_bytes = DTYPES[precision].itemsize
    seconds = seconds_of(layers, "ideal", batch_size=case.batch_size, peaks=peaks, value_bytes=value_bytes)
    return {"limit_images_per_s": case.batch_size / seconds, "gflop_per_image": flops_of(layers) / 1e9}
