"""Validation as `launch/evaluate.py` does it: shards, exact counts, loss and bootstrap; each "batch" is a whole pass.

Arguments: precision, number of workers, images per forward pass, preset of the network.
"""

import sys
from typing import Any

import numpy as np

from tests.benchmarks.loops.files import MEAN, STD
from tests.benchmarks.loops.ours import PRECISIONS
from tests.benchmarks.peers.protocol import Batches, Job, installed, serve
from unetdist.data.labels import Palette
from unetdist.data.loader import DataConfig
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import make_accelerator, seed_everything, world_of
from unetdist.evaluation.evaluate import ValidationConfig
from unetdist.evaluation.scoring import build_validator
from unetdist.model.losses import LossConfig, build_loss
from unetdist.model.unet import UNet, UNetConfig


def passes(job: Job) -> Batches:
    """Endless passes over the shards in `job.pictures`; each gives (num_classes, num_classes) pixel counts."""
    precision, num_workers, batch_size, preset = sys.argv[1:5]
    accelerator = make_accelerator(mixed_precision=PRECISIONS[precision])
    world = world_of(accelerator)
    manifest = Manifest.load(job.pictures)
    palette = Palette.from_records(manifest.palette_records)
    config: Any = UNetConfig(preset=preset)  # type: ignore[arg-type]
    seed_everything(job.seed)
    model = UNet(config, num_classes=palette.num_classes, mean=MEAN, std=STD).to(world.device).eval()
    validator = build_validator(
        job.pictures,
        model_config=config,
        palette=palette,
        resize=manifest.resize,
        image_range=manifest.image_range,
        loss=build_loss(LossConfig(), num_classes=palette.num_classes).to(world.device),
        cfg=ValidationConfig(batch_size=int(batch_size)),
        data_cfg=DataConfig(train=job.pictures, num_workers=int(num_workers)),
        num_pictures=0,
        world=world,
        autocast=accelerator.autocast,
    )
    while True:
        yield validator.score(model).confusion, np.zeros(1)


if __name__ == "__main__":
    serve(passes, installed("torch", "accelerate"))
