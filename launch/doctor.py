"""Check everything that a long run needs, and try a few steps of it, before you start it.

accelerate launch launch/doctor.py --config configs/camvid.yaml

Start it like the run itself, with the same settings (--section.field value) and processes, or with plain python. Each
finding is one line with its remedy: versions, processes, devices and memory, shards and labels, classes that never
occur, folders, a few training steps and a part of a validation with their memory, and the hours and disk that the run
will take. It does not start or modify the run. The exit code is 0 if there is no problem, else 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unetdist.cli import settings
from unetdist.cli.logs import run_script
from unetdist.commands.doctor.command import examine
from unetdist.train.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and examine."""
    parser = argparse.ArgumentParser(
        "launch/doctor.py",
        usage="%(prog)s --config FILE [--json FILE] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write findings and measurements to this file")
    args, words = parser.parse_known_args(argv)
    config = settings.parse(Config, words, prog="launch/doctor.py", description=__doc__)
    return examine(config, json_file=args.json)


if __name__ == "__main__":
    run_script(main)
