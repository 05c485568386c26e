"""A validation set, wired: for a run, and to score saved weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from unetdist.cli.logs import set_up_logging
from unetdist.data.image_file import ImageRange, warn_of_other_range
from unetdist.data.labels import Palette
from unetdist.data.loader import DataConfig, open_data, val_loader
from unetdist.data.reader import ShardReader
from unetdist.distributed.collectives import MixedPrecision, World, make_accelerator, world_of
from unetdist.distributed.hardware import keep_all_freed
from unetdist.errors import ConfigError
from unetdist.evaluation.completeness import Expected
from unetdist.evaluation.evaluate import ValidationConfig
from unetdist.evaluation.validation import Validator, shares_windows
from unetdist.model.losses import Loss, LossConfig
from unetdist.model.saved_model import SavedModel, load_model
from unetdist.model.unet import UNetConfig


def build_validator(
    location: str,
    *,
    model_config: UNetConfig,
    palette: Palette,
    resize: tuple[int, int] | None,
    image_range: ImageRange | None,
    loss: Loss,
    cfg: ValidationConfig,
    data_cfg: DataConfig,
    num_pictures: int,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Validator:
    """The shards at `location`, ready to score models trained on the classes of `palette` at the size `resize`.

    `image_range` is that of the training images; a warning is logged if these shards were made with another one.
    """
    folder, manifest = open_data(data_cfg, location)
    if manifest.palette_records != tuple(palette.to_records()):
        raise ConfigError(
            f"{folder} has other classes than the training shards; shard both with the same Labels.txt and the "
            "same --ignore."
        )
    if not sum(manifest.class_pixels):
        raise ConfigError(f"{folder} has only ignored pixels, so it has no mIoU; use other shards.")
    if world.is_main:
        warn_of_other_range(folder, manifest.image_range, image_range)
    together = shares_windows(cfg.inference, manifest.num_samples, world)
    return Validator(
        batches=val_loader(
            data_cfg,
            manifest,
            folder,
            channels=model_config.in_channels,
            num_classes=palette.num_classes,
            batch_size=cfg.batch_size,
            rank=0 if together else world.rank,
            world_size=1 if together else world.world_size,
            local_world_size=world.local_world_size,
            pin_memory=world.device.type == "cuda",
        ),
        expected=Expected(str(folder), manifest.num_samples, np.array(manifest.class_pixels)),
        palette=palette,
        loss=loss,
        cfg=cfg,
        world=world,
        autocast=autocast,
        resize=resize if manifest.resize != resize else None,
        key_of=ShardReader(folder, manifest).key,
        num_pictures=num_pictures,
    )


@contextmanager
def evaluations(
    model_folders: Sequence[str],
    data_folder: str,
    *,
    cfg: ValidationConfig | None = None,
    num_workers: int = 2,
    mixed_precision: MixedPrecision = "no",
) -> Iterator[tuple[list[tuple[Validator, SavedModel]], World]]:
    """Collective. Saved models, each with the shards in `data_folder` to score it on, this process among the others."""
    accelerator = make_accelerator(mixed_precision=mixed_precision)
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    keep_all_freed()

    def validator_of(saved: SavedModel) -> Validator:
        return build_validator(
            data_folder,
            model_config=saved.model.config,
            palette=saved.palette,
            resize=saved.resize,
            image_range=saved.image_range,
            loss=Loss(LossConfig(), torch.ones(saved.palette.num_classes)).to(world.device),
            cfg=cfg or ValidationConfig(),
            data_cfg=DataConfig(train=data_folder, num_workers=num_workers),
            num_pictures=0,
            world=world,
            autocast=accelerator.autocast,
        )

    models = [load_model(folder, world.device) for folder in model_folders]
    yield [(validator_of(saved), saved) for saved in models], world
    accelerator.end_training()


@contextmanager
def evaluation(
    model_folder: str, data_folder: str, *, batch_size: int = 1, **settings: Any
) -> Iterator[tuple[Validator, SavedModel, World]]:
    """Collective. `evaluations` of one model, with its settings."""
    cfg = ValidationConfig(batch_size=batch_size)
    with evaluations([model_folder], data_folder, cfg=cfg, **settings) as (((validator, saved),), world):
        yield validator, saved, world
