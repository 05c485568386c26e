"""Compare unetdist with the programs that people would use instead: tables, OUT/NAME.json and a chart."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import data, eval, limits, train
from tests.benchmarks.harness import machine_facts
from unetdist.cli.logs import logger, run_script, set_up_logging

# Each module has `add_arguments(parser)` and `run(args, facts)`.
PROGRAMS = {"data": data, "train": train, "eval": eval, "limits": limits}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run one program."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    for name, module in PROGRAMS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        sub = programs.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(sub)
        sub.add_argument(
            "--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder for results (%(default)s)"
        )
    args = parser.parse_args(words)
    set_up_logging()
    PROGRAMS[args.program].run(args, machine_facts(words))
    logger.info("all numbers are in %s", args.out / f"{args.program}.json")
    return 0


if __name__ == "__main__":
    run_script(main)
