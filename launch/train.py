"""Train a U-Net: `accelerate launch launch/train.py --config configs/camvid.yaml [--section.field value ...]`."""

import sys

from unetdist import settings
from unetdist.build import build_trainer
from unetdist.config import Config
from unetdist.logs import run_script

DESCRIPTION = """Train a U-Net on shards that launch/shard_dataset.py wrote. Settings come from the YAML file of
--config; any of them can be changed on the command line as --section.field value. The weights of the best
validation mIoU are kept in RUNS_DIR/NAME/best; the same command again continues an interrupted run."""

STOPPED_EARLY = 75
"""Exit code after a signal (EX_TEMPFAIL of sysexits.h): run the same command again to continue."""


def main() -> int:
    """Parse, build, train."""
    config = settings.parse(Config, sys.argv[1:], prog="launch/train.py", description=DESCRIPTION)
    with build_trainer(config) as trainer:
        finished = trainer.fit()
    return 0 if finished else STOPPED_EARLY


if __name__ == "__main__":
    run_script(main)
