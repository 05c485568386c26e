"""Writes the files to begin with.

my_data.yaml holds the settings of a run. --accelerate adds a file of settings for `accelerate launch`, which clusters
need; on one machine, `unetdist train --processes N` needs none. --slurm adds a batch script that trains on several
nodes and requeues itself. Files that exist are kept.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.errors import one_line, writable

PACKAGE = Path(__file__).parents[1]

# The wheel has copies of files that a checkout has in other folders.
PLACES = [PACKAGE / "starter", PACKAGE.parent / "configs", PACKAGE.parent / "launch"]


def main(argv: Sequence[str]) -> int:
    """Write the files that are missing, and print the next commands."""
    args = _parse(argv)
    names = ["my_data.yaml", *([f"{args.accelerate}.yaml"] if args.accelerate else [])]
    names += ["several_nodes.yaml", "train.sbatch"] if args.slurm else []
    for name in dict.fromkeys(names):
        is_new = write(name, args.dir)
        print(one_line(f"{'wrote' if is_new else 'kept'} {args.dir / name}"))
    train = f"{typed('train')} --config my_data.yaml"
    if args.accelerate:
        train = f"accelerate launch --config_file {args.accelerate}.yaml -m {train}"
    if args.slurm:
        train = "sbatch train.sbatch"
    print(
        "next, with your folders and Labels.txt:\n"
        f"  {typed('shard')} --images DIR --masks DIR --labels Labels.txt \\\n    --val-fraction 0.2 --out shards\n"
        f"  {train}"
    )
    return 0


def write(name: str, folder: Path) -> bool:
    """Write a starter file unless it exists; whether it was written.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    source = next(file for place in PLACES for file in place.rglob(name))
    # all files are in one folder now
    text = re.sub(r"\b(configs/accelerate|configs|launch/slurm)/", "", source.read_text(encoding="utf-8"))
    with writable("--dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    return True


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Options(typed("init"), table="init", description=__doc__)
    launches = ("cpu", "one_gpu", "one_node", "several_nodes")
    parser.add_argument("--accelerate", choices=launches, help="settings for accelerate launch, for these machines")
    parser.add_argument("--slurm", action="store_true", help="train.sbatch, and several_nodes.yaml that it needs")
    parser.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="folder (default: the current one)")
    return parser.parse_args(argv)
