"""Train the first steps of a run on several numbers of processes, and compare samples, losses and state bit by bit.

The first number is the reference. All runs are on this machine: on its GPUs if there are enough for the largest number,
otherwise on the CPU, with OMP_NUM_THREADS threads per process (default: 1). Any setting of `unetdist train` can be
given as --section.field value. Where bits differ, the step, the tensor and the largest difference are shown. The exit
code is 0 if all bits are equal, or a setting explains why not, otherwise 1.
"""

import argparse
import re
from collections.abc import Sequence

from unetdist.cli import settings
from unetdist.cli.command_line import Options, positive_int
from unetdist.cli.commands import typed
from unetdist.cli.logs import PlainConsole, set_up_logging
from unetdist.distributed.launcher import start_processes
from unetdist.train.config import Config

EXAMPLES = ("--config my_data.yaml --world 1,2,4", "--config my_data.yaml --steps 5 --optim.kind sgd")


def main(argv: Sequence[str]) -> int:
    """Start all runs and compare them; with --record, train as one process of a run."""
    own = Options(typed("equivalence"))
    add = own.add_argument
    add("--world", type=parse_world, default=(1, 2), metavar="N,N", help="numbers of processes (default: 1,2)")
    add("--steps", type=positive_int, default=20, metavar="N", help="steps of each run (default: %(default)s)")
    for of_a_run in ("--record", "--processes"):
        add(of_a_run, type=positive_int, help=argparse.SUPPRESS)
    args, words = own.parse_known_args(argv)
    config = settings.parse(Config, words, prog=typed("equivalence"), description=__doc__, examples=EXAMPLES, own=own)
    if args.record is not None:
        code = start_processes("equivalence", argv, args.processes)
        if code is None:
            from unetdist.commands.equivalence.runs import record

            record(config, args.record)
        return code or 0
    from unetdist.commands.equivalence.runs import compare_worlds, processes, render

    set_up_logging()
    rows = compare_worlds(config, args.world, steps=args.steps)
    PlainConsole().print(render(f"{config.name}: compared with {processes(args.world[0])}", rows))
    return 0 if all(row.is_as_promised for row in rows) else 1


def parse_world(text: str) -> tuple[int, ...]:
    """Parse N,N,...: two or more, positive, no number twice."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)+", text) or len(set(text.split(","))) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"invalid numbers of processes: {text!r}; use 1,2,4")
    return tuple(map(int, text.split(",")))
