"""Look at all that a long run leans on, and try a few steps of it, before it is begun.

accelerate launch launch/doctor.py --config configs/camvid.yaml

Start it as the run itself will be started, with the same settings (--section.field value) and processes, or by plain
python. Each finding is one line with its remedy: versions, devices, memory, how the processes reach each other and how
fast, shards against their manifest, labels, absent classes, folders, a few training steps and a part of a validation
with their memory, and what the run will take in hours and disk. Nothing of the run is begun, continued or changed. Ends
with 0 if there is no problem, else with 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unetdist.apps.doctor.command import examine
from unetdist.apps.doctor.findings import Finding, problem
from unetdist.cli import settings
from unetdist.cli.logs import run_script
from unetdist.errors import ConfigError
from unetdist.train.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and examine; settings that are refused are a finding."""
    args, words = make_parser().parse_known_args(argv)
    config: Config | None = None
    refused: list[Finding] = []
    try:
        config = settings.parse(Config, words, prog="launch/doctor.py", description=__doc__)
    except ConfigError as error:
        refused.append(problem("settings", str(error)))
    return examine(config, refused=refused, full=args.full, json_file=args.json)


def make_parser() -> argparse.ArgumentParser:
    """What is not a setting."""
    parser = argparse.ArgumentParser(
        "launch/doctor.py",
        usage="%(prog)s --config FILE [--full] [--json FILE] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--full", action="store_true", help="read all shards (default: a part of them, in seconds)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write findings and measurements to this file too"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
