"""Measure this program beside what people would write instead: `python launch/benchmark.py data --against all`.

`data`: samples/s of the whole data path, files to batches, on one core. Pictures come from --images, --masks and
--labels, or are the built-in shapes. Everybody gets the same pictures, in the format that its own documentation
recommends, and is checked before it is timed. A table goes to the terminal; all numbers go to OUT/data.json, and a
chart to OUT/data.png.

`remote`: shards at URLs beside the same ones on the local disk: seconds to the first batch, and speed once cached.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from unetdist.benchmark import remote
from unetdist.benchmark.chart import draw_chart
from unetdist.benchmark.data import Plan, choose, run_case
from unetdist.benchmark.machine import machine_facts
from unetdist.benchmark.report import tables, to_mapping
from unetdist.benchmark.source import Case, Pictures
from unetdist.errors import ConfigError
from unetdist.logs import logger, run_script, set_up_logging
from unetdist.storage import write_atomic, write_json

CASES = ("480x360:256", "2048x1024:512")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(words)
    set_up_logging()
    return remote_shards(args, words) if args.command == "remote" else data(args, words)


def data(args: argparse.Namespace, words: Sequence[str]) -> int:
    """The subcommand `data`; who cannot be measured is void in the table, and the others go on."""
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
    facts = machine_facts(["launch/benchmark.py", *words])
    results = [run_case(case, pictures, plan) for case in args.cases]
    record = {**facts, "pictures": pictures.name, "core": core, "batch_size": plan.batch_size}
    write_json(args.out / "data.json", {**record, "cases": [to_mapping(result) for result in results]})
    caption = f"{facts['cpu']}, {facts['cores']} cores, {facts['date'][:10]}, commit {facts['commit']}"
    with write_atomic(args.out / "data.png") as file:
        Image.fromarray(draw_chart(results, caption)).save(file, "PNG")
    for result in results:
        Console().print(tables(result))
    logger.info("all numbers are in %s, a chart in %s", args.out / "data.json", args.out / "data.png")
    return 0


def remote_shards(args: argparse.Namespace, words: Sequence[str]) -> int:
    """The subcommand `remote`."""
    facts = machine_facts(["launch/benchmark.py", *words])
    streamed = remote.stream(
        args.local, args.at, crop=args.crop, num_rounds=args.rounds, seconds=args.seconds
    )
    write_json(args.out / "remote.json", {**facts, **remote.to_mapping(streamed)})
    Console().print(remote.table(streamed))
    logger.info("all numbers are in %s", args.out / "remote.json")
    return 0


def parse_case(text: str) -> Case:
    """WxH:CROP, as in 480x360:256."""
    match = re.fullmatch(r"(\d+)x(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid WxH:CROP value: {text!r}; use 480x360:256")
    return Case(*map(int, match.groups()))


def parse_workers(text: str) -> tuple[int, ...]:
    """N,N,..., each over 0."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"invalid list of workers: {text!r}; use 1,2")
    return tuple(map(int, text.split(",")))


def positive(text: str) -> int:
    """A whole number over 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number over 0")
    return int(text)


def positive_seconds(text: str) -> float:
    """Seconds over 0."""
    if not re.fullmatch(r"\d*\.?\d+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid seconds: {text!r}; use a number over 0")
    return float(text)


def make_parser() -> argparse.ArgumentParser:
    """All that the command line understands."""
    parser = argparse.ArgumentParser("benchmark.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("data", help="samples/s of the data path on one core", description=__doc__)
    part.add_argument(
        "--against", default="all", metavar="NAMES", help="all, or names with commas between (all)"
    )
    part.add_argument("--images", type=Path, metavar="DIR", help="pictures; default: the built-in shapes")
    part.add_argument("--masks", type=Path, metavar="DIR", help="their masks")
    part.add_argument("--labels", type=Path, metavar="FILE", help="colours and names of the classes")
    part.add_argument(
        "--cases",
        type=parse_case,
        nargs="+",
        default=[parse_case(case) for case in CASES],
        metavar="WxH:CROP",
        help=f"pictures are scaled to cover WxH and cut; crops are square ({' '.join(CASES)})",
    )
    part.add_argument(
        "--samples", type=positive, metavar="N", help="in an epoch; default: some seconds of them"
    )
    part.add_argument("--rounds", type=positive, default=12, metavar="N", help="that count (%(default)s)")
    part.add_argument(
        "--seconds", type=positive_seconds, default=1.0, help="of a contender's round (%(default)s)"
    )
    part.add_argument("--core", type=int, help="the one core that is used; default: the last one")
    part.add_argument(
        "--peers-python", default=sys.executable, metavar="PATH", help="python that has the others' packages"
    )
    part.add_argument("--split", action="store_true", help="our time by read, decode, augment, collate")
    part.add_argument(
        "--workers", type=parse_workers, default=(), metavar="N,N", help="also ours with so many workers"
    )
    part.add_argument("--handover", action="store_true", help="also the way from a worker to the trainer")
    part.add_argument(
        "--work", type=Path, default=Path("runs/benchmark/work"), metavar="DIR", help="(%(default)s)"
    )
    part.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="(%(default)s)")
    part = commands.add_parser(
        "remote", help="shards of other machines: first batch, and speed once cached", description=__doc__
    )
    part.add_argument("--local", type=Path, required=True, metavar="DIR", help="the shards on a local disk")
    part.add_argument("--at", nargs="+", required=True, metavar="URL", help="where the same shards are too")
    part.add_argument("--crop", type=positive, default=256, metavar="PX", help="(%(default)s)")
    part.add_argument("--rounds", type=positive, default=15, metavar="N", help="that count (%(default)s)")
    part.add_argument("--seconds", type=float, default=1.0, help="of a round (%(default)s)")
    part.add_argument("--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="(%(default)s)")
    return parser


if __name__ == "__main__":
    run_script(main)
