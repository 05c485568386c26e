"""Measure this program beside what people would write instead: `python launch/benchmark.py data --against all`.

Each subcommand prints a table; all numbers go to OUT/NAME.json, and a chart to OUT/NAME.png.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.benchmarks import (
    data_command,
    layers_command,
    limit_command,
    predict_command,
    remote,
    train_command,
    validation,
)
from tests.benchmarks.machine import machine_facts
from unetdist.cli.logs import run_script, set_up_logging

COMMANDS = {
    "data": (data_command, "samples/s of the data path on one core"),
    "eval": (validation, "validation images/s, ours beside plain loops"),
    "layers": (layers_command, "every convolution of a network, under the roofs of the device"),
    "limit": (limit_command, "images/s of training at most, by FLOPs and bytes"),
    "predict": (predict_command, "predicting many images beside scoring them: images/s and memory"),
    "remote": (remote, "shards of other machines: first batch, and speed once cached"),
    "train": (train_command, "images/s of training loops, ours beside what people would write"),
}
"""Module and help of each subcommand. A module has `add_arguments(parser)` and `run(args, facts)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print, write."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(words)
    set_up_logging()
    module, _ = COMMANDS[args.command]
    module.run(args, machine_facts(["launch/benchmark.py", *words]))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """All that the command line understands."""
    parser = argparse.ArgumentParser("launch/benchmark.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    return parser


if __name__ == "__main__":
    run_script(main)
