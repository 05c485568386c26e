"""Trains a U-Net: `unetdist train --config my_data.yaml [--section.field value ...]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unetdist.cli import settings
from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.distributed.launcher import add_processes_option, start_processes
from unetdist.errors import printable
from unetdist.train.config import AUTO, Config
from unetdist.train.run_status import STOPPED_EARLY

if TYPE_CHECKING:
    from unetdist.train.trainer import TrainState

DESCRIPTION = """Train a U-Net on shards. Settings come from the YAML file of --config; change any of them on the
command line with --section.field value, or --field value if only one section has that field. The weights with the best
validation mIoU go to RUNS_DIR/NAME/best. To continue an interrupted run, give the same command again."""


def main(argv: Sequence[str]) -> int:
    """Parse the settings, start the processes if it takes several, and train."""
    own = Options(typed("train"))
    add_processes_option(own)
    args, words = own.parse_known_args(argv)
    config = settings.parse(Config, words, prog=typed("train"), description=DESCRIPTION, own=own)
    code = start_processes("train", argv, args.processes, stopped=STOPPED_EARLY)
    return train(config) if code is None else code


def train(config: Config) -> int:
    """Collective. Build the run and train; the exit code."""
    from unetdist.train.build import build_trainer

    with build_trainer(config) as trainer:
        finished = trainer.fit()
    # After the dashboards have said their last word, so that these lines are the last ones.
    if trainer.world.is_main:
        print(printable(describe_end(config, trainer.status.run_dir, trainer.state, finished)), flush=True)
    return 0 if finished else STOPPED_EARLY


def describe_end(config: Config, run_dir: Path, state: "TrainState", finished: bool) -> str:
    """Tell the user where the result is and what to do next."""
    if not finished:
        command = "the same command" + (f" with --name {run_dir.name}" if config.name == AUTO else "")
        return f"stopped at step {state.step}; {command} continues there (exit code {STOPPED_EARLY})"
    if state.best_miou < 0:
        return f"done, without validation: the last weights are in {run_dir / 'last'}"
    return (
        f"done: best validation mIoU {100 * state.best_miou:.1f} % at step {state.best_step}, weights in "
        f"{run_dir / 'best'}\n"
        f"next: {typed('predict')} --model {run_dir / 'best'} --input IMAGES --out DIR --overlay"
    )
