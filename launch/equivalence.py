"""Train the first steps of a run on several numbers of processes, and compare samples, losses and weights.

python launch/equivalence.py --config configs/shapes.yaml --world 1,2,4

The first number is what the others are compared with; it is also repeated, once as it is and once from weights that
are changed in their last digit, which shows what rounding alone does. Every run is an `accelerate launch` of its own
on this machine: on its GPUs where there are enough for the largest number, else on its CPU. Any setting of
launch/train.py can be given as --section.field value. Ends with 0 if nothing contradicts what the settings promise,
with 1 if something does: where equal weights are not promised, the reason is told, and samples must still be the same.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unetdist.apps.equivalence import record
from unetdist.apps.equivalence.compare import compare
from unetdist.apps.equivalence.promise import broken_by, check_worlds
from unetdist.apps.equivalence.report import Report, Row, render
from unetdist.apps.equivalence.worlds import Plan, has_gpus, processes, runs_of, train_all
from unetdist.cli import settings
from unetdist.cli.logs import PlainConsole, logger, run_script, set_up_logging
from unetdist.train.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse; as one process of a run train it, else start all runs and compare them."""
    args, words = make_parser().parse_known_args(argv)
    if args.task is not None:
        record.run(record.Task(**json.loads(args.task.read_text(encoding="utf-8"))))
        return 0
    config = settings.parse(Config, words, prog="launch/equivalence.py", description=__doc__)
    set_up_logging()
    report = compare_worlds(config, args.world, steps=args.steps, float64=args.float64)
    PlainConsole().print(render(report))
    return 0 if report.is_as_promised else 1


def compare_worlds(config: Config, worlds: Sequence[int], *, steps: int, float64: bool) -> Report:
    """Train all runs, one after the other, and put them beside the first."""
    on_gpu = has_gpus(worlds)
    all_steps = check_worlds(config, worlds, device_type="cuda" if on_gpu else "cpu")
    runs = runs_of(worlds)
    with tempfile.TemporaryDirectory(prefix="unetdist-equivalence-") as work:
        plan = Plan(
            config=config,
            steps=min(steps, all_steps),
            float64=float64,
            on_gpu=on_gpu,
            script=Path(__file__),
            work=Path(work),
        )
        logger.info("%d runs of %d steps, each begun by a launch of some seconds", len(runs), plan.steps)
        reference, *records = train_all(runs, plan)
    noise = next(lines for run, lines in zip(runs[1:], records, strict=True) if run.is_nudged)
    rows = [
        Row(
            run,
            compare(reference, lines, noise, float64=float64),
            broken_by(plan.trained, (worlds[0], run.world_size)),
        )
        for run, lines in zip(runs[1:], records, strict=True)
    ]
    kind = f"float{64 if float64 else 32} on {'GPUs' if on_gpu else 'the CPU'}"
    title = f"{config.name}: {plan.steps} steps in {kind}, beside {processes(worlds[0])}"
    return Report(title=title, rows=rows, float64=float64)


def parse_world(text: str) -> tuple[int, ...]:
    """N,N,...: each over 0, none twice."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text) or len(set(text.split(","))) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"invalid numbers of processes: {text!r}; use 1,2,4")
    return tuple(map(int, text.split(",")))


def parse_steps(text: str) -> int:
    """A whole number over 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number over 0")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """What is not a setting."""
    parser = argparse.ArgumentParser(
        "launch/equivalence.py",
        usage="%(prog)s --config FILE [--world N,N] [--steps N] [--float64] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--world", type=parse_world, default=(1, 2), metavar="N,N", help="numbers of processes (1,2)"
    )
    parser.add_argument(
        "--steps", type=parse_steps, default=20, metavar="N", help="of each run (%(default)s)"
    )
    parser.add_argument("--float64", action="store_true", help="compute in double precision: sharper, slower")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_script(main)
