"""Train the first steps of a run on several numbers of processes, and compare samples, losses and weights.

python launch/equivalence.py --config configs/shapes.yaml --world 1,2,4

The first number is the reference. It is repeated twice: unchanged, and with its first weights changed in their last
digit, which shows the effect of rounding. Each run is one `accelerate launch` on this machine: on the GPUs if
there are enough for the largest number, otherwise on the CPU. Any setting of launch/train.py can be given as
--section.field value. The exit code is 0 if the runs keep what the settings promise, otherwise 1. If the settings do
not promise equal weights, the reason is shown, and only the samples must be equal.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unetdist.apps.equivalence import record
from unetdist.apps.equivalence.compare import compare
from unetdist.apps.equivalence.report import ComparisonRow, render
from unetdist.apps.equivalence.worlds import (
    ComparisonPlan,
    broken_by,
    check_worlds,
    has_gpus,
    processes,
    runs_of,
    train_all,
    trained_config,
)
from unetdist.cli import settings
from unetdist.cli.logs import PlainConsole, logger, run_script, set_up_logging
from unetdist.cli.settings import positive_int
from unetdist.train.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Start all runs and compare them; with --task, train as one process of a run."""
    args, words = make_parser().parse_known_args(argv)
    if args.task is not None:
        record.run(record.RecordTask(**json.loads(args.task.read_text(encoding="utf-8"))))
        return 0
    config = settings.parse(Config, words, prog="launch/equivalence.py", description=__doc__)
    set_up_logging()
    return compare_worlds(config, args.world, steps=args.steps, float64=args.float64)


def compare_worlds(config: Config, worlds: Sequence[int], *, steps: int, float64: bool) -> int:
    """Train all runs one after the other, compare them with the first, and return the exit code."""
    on_gpu = has_gpus(worlds)
    steps = min(steps, check_worlds(config, worlds, device_type="cuda" if on_gpu else "cpu"))
    config = trained_config(config, float64=float64)
    runs = runs_of(worlds)
    logger.info("%d runs of %d steps; each launch takes a few seconds", len(runs), steps)
    with tempfile.TemporaryDirectory(prefix="unetdist-equivalence-") as work:
        plan = ComparisonPlan(
            config=config, steps=steps, float64=float64, on_gpu=on_gpu, script=Path(__file__), work=Path(work)
        )
        reference, *records = train_all(runs, plan)
    _, noise, *_ = records
    rows = [
        ComparisonRow(
            run, compare(reference, lines, noise, float64=float64), broken_by(config, (worlds[0], run.world_size))
        )
        for run, lines in zip(runs[1:], records, strict=True)
    ]
    kind = f"float{64 if float64 else 32} on {'GPUs' if on_gpu else 'the CPU'}"
    title = f"{config.name}: {steps} steps in {kind}, compared with {processes(worlds[0])}"
    PlainConsole().print(render(title, rows, float64=float64))
    return 0 if all(row.is_as_promised for row in rows) else 1


def parse_world(text: str) -> tuple[int, ...]:
    """Parse N,N,...: positive, no number twice."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text) or len(set(text.split(","))) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"invalid numbers of processes: {text!r}; use 1,2,4")
    return tuple(map(int, text.split(",")))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are not settings."""
    parser = argparse.ArgumentParser(
        "launch/equivalence.py",
        usage="%(prog)s --config FILE [--world N,N] [--steps N] [--float64] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--world", type=parse_world, default=(1, 2), metavar="N,N", help="numbers of processes (default: 1,2)"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=20, metavar="N", help="steps of each run (default: %(default)s)"
    )
    parser.add_argument("--float64", action="store_true", help="use double precision: sharper and slower")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_script(main)
