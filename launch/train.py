"""Train a U-Net: `accelerate launch launch/train.py --config configs/camvid.yaml [--section.field value ...]`."""

import sys
from pathlib import Path

from unetdist.cli import settings
from unetdist.cli.logs import run_script
from unetdist.errors import printable
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.run_status import STOPPED_EARLY
from unetdist.train.trainer import TrainState

DESCRIPTION = """Train a U-Net on shards that launch/shard_dataset.py wrote. Settings come from the YAML file of
--config; change any of them on the command line with --section.field value, or --field value if only one section has
that field. The weights with the best validation mIoU go to RUNS_DIR/NAME/best. To continue an interrupted run, give the
same command again."""


def main() -> int:
    """Parse the settings, build the run, train."""
    config = settings.parse(Config, sys.argv[1:], prog="launch/train.py", description=DESCRIPTION)
    with build_trainer(config) as trainer:
        finished = trainer.fit()
        if trainer.world.is_main:
            print(printable(describe_end(Path(config.runs_dir) / config.name, trainer.state, finished)), flush=True)
    return 0 if finished else STOPPED_EARLY


def describe_end(run_dir: Path, state: TrainState, finished: bool) -> str:
    """Tell the user where the result is and what to do next."""
    if not finished:
        return f"stopped at step {state.step}; the same command continues there (exit code {STOPPED_EARLY})"
    if state.best_miou < 0:
        return f"done, without validation: the last weights are in {run_dir / 'last'}"
    return (
        f"done: best validation mIoU {100 * state.best_miou:.1f} % at step {state.best_step}, weights in "
        f"{run_dir / 'best'}\n"
        f"next: python launch/predict.py --model {run_dir / 'best'} --input IMAGES --out DIR --overlay"
    )


if __name__ == "__main__":
    run_script(main)
