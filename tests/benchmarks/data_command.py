"""The subcommand `data`: samples/s of the whole data path, files to batches, on one core.

Pictures come from --images, --masks and --labels, or are the built-in shapes. Everybody gets the same pictures, in
the format that its own documentation recommends, and is checked before it is timed.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from tests.benchmarks.arguments import add_out, parse_case, parse_workers, positive, positive_seconds
from tests.benchmarks.chart import draw_chart
from tests.benchmarks.data import Plan, choose, run_case
from tests.benchmarks.report import tables, to_mapping
from tests.benchmarks.source import Pictures
from unetdist.cli.logs import logger
from unetdist.errors import ConfigError
from unetdist.storage.files import write_atomic, write_json

CASES = ("480x360:256", "2048x1024:512")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand understands."""
    add = parser.add_argument
    add("--against", default="all", metavar="NAMES", help="all, or names with commas between (all)")
    add("--images", type=Path, metavar="DIR", help="pictures; default: the built-in shapes")
    add("--masks", type=Path, metavar="DIR", help="their masks")
    add("--labels", type=Path, metavar="FILE", help="colours and names of the classes")
    add(
        "--cases",
        type=parse_case,
        nargs="+",
        default=[parse_case(case) for case in CASES],
        metavar="WxH:CROP",
        help=f"pictures are scaled to cover WxH and cut; crops are square ({' '.join(CASES)})",
    )
    add("--samples", type=positive, metavar="N", help="in an epoch; default: some seconds of them")
    add("--rounds", type=positive, default=12, metavar="N", help="that count (%(default)s)")
    add("--seconds", type=positive_seconds, default=1.0, help="of a contender's round (%(default)s)")
    add("--core", type=int, help="the one core that is used; default: the last one")
    add("--peers-python", default=sys.executable, metavar="PATH", help="python that has the others' packages")
    add("--split", action="store_true", help="our time by read, decode, augment, collate, transfer")
    cores = len(os.sched_getaffinity(0))
    add(
        "--workers",
        type=parse_workers,
        default=(cores,),
        metavar="N,N",
        help=f"none, or also ours with so many workers, on all cores ({cores})",
    )
    add("--handover", action="store_true", help="also the way from a worker to the trainer")
    add("--work", type=Path, default=Path("runs/benchmark/work"), metavar="DIR", help="(%(default)s)")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure and print; who cannot be measured is void in the table, and the others go on.

    All numbers go to OUT/data.json, and a chart to OUT/data.png.
    """
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if args.core is None else args.core
    if core not in cores:
        raise ConfigError(f"--core ({core}) is not among the cores of this process {cores}; use {cores[-1]}.")
    plan = Plan(
        work=args.work,
        peers_python=args.peers_python,
        core=core,
        against=choose(args.against),
        num_rounds=args.rounds,
        seconds=args.seconds,
        num_samples=args.samples,
        split=args.split,
        workers=args.workers,
        handover=50 if args.handover else 0,
    )
    pictures = Pictures(args.images, args.masks, args.labels)
    results = [run_case(case, pictures, plan) for case in args.cases]
    record = {**facts, "pictures": pictures.name, "core": core, "batch_size": plan.batch_size}
    write_json(args.out / "data.json", {**record, "cases": [to_mapping(result) for result in results]})
    caption = f"{facts['cpu']}, {facts['cores']} cores, {facts['date'][:10]}, commit {facts['commit']}"
    with write_atomic(args.out / "data.png") as file:
        Image.fromarray(draw_chart(results, caption)).save(file, "PNG")
    for result in results:
        Console().print(tables(result))
    logger.info("all numbers are in %s, a chart in %s", args.out / "data.json", args.out / "data.png")
