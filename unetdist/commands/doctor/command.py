"""Check everything that a long run needs, and try a few steps of it, before you start it.

Start it like the run itself, with the same settings (--section.field value) and processes, or alone. Each
finding is one line with its remedy: versions, processes, devices and memory, shards and labels, classes that never
occur, folders, a few training steps and a part of a validation with their memory, and the hours and disk that the run
will take. It does not start or modify the run. The exit code is 0 if there is no problem, else 1.
"""

from collections.abc import Sequence
from pathlib import Path

from unetdist.cli import settings
from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.distributed.launcher import add_processes_option, start_processes
from unetdist.train.config import Config


def main(argv: Sequence[str]) -> int:
    """Parse and examine."""
    own = Options(typed("doctor"))
    own.add_argument("--json", type=Path, metavar="FILE", help="also write findings and measurements to this file")
    add_processes_option(own)
    args, words = own.parse_known_args(argv)
    config = settings.parse(Config, words, prog=typed("doctor"), description=__doc__, own=own)
    code = start_processes("doctor", argv, args.processes)
    if code is not None:
        return code
    from unetdist.commands.doctor.examine import examine

    return examine(config, json_file=args.json)
