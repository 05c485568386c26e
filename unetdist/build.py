"""From settings to a wired run: the only place that knows all parts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from unetdist import settings, storage
from unetdist.checkpoint import Checkpoints
from unetdist.config import Config
from unetdist.data.labels import Palette
from unetdist.data.loader import train_loader, val_loader
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.distributed import StopSignal, World, barrier, make_accelerator, seed_everything, world_of
from unetdist.ema import Ema
from unetdist.errors import ConfigError
from unetdist.evaluate import Expected, Report
from unetdist.logs import logger, set_up_logging
from unetdist.losses import Loss, build_loss
from unetdist.model.unet import UNet
from unetdist.optim import build_optimizer
from unetdist.saved_model import save_model
from unetdist.tracking import Tracker
from unetdist.schedule import Schedule
from unetdist.trainer import Trainer, TrainState
from unetdist.validation import Validator

CONFIG_FILE = "config.yaml"

RESULT_NEUTRAL = (
    "name", "runs_dir", "data.num_workers", "data.train", "data.val", "trainer.micro_batch_size", "trainer.log_every",
    "trainer.timeout_s", "checkpoint.", "tracking.", "validation.",
)  # fmt: skip
"""Settings (or sections) that may differ when a run is continued: they do not change its weights."""


def build_trainer(config: Config) -> Trainer:
    """Collective. Check and wire a run; everything that can be wrong is found here, before time is spent."""
    accelerator = make_accelerator(
        mixed_precision=config.trainer.mixed_precision, timeout_s=config.trainer.timeout_s
    )
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    run_dir = Path(config.runs_dir) / config.name
    check_run_dir(run_dir, config, world)
    logger.info("run %s: %d process(es), %s", run_dir, world.world_size, world.device)

    manifest = Manifest.load(config.data.train)
    palette = Palette.from_records(manifest.palette_records)
    loss = build_loss(
        config.loss,
        num_classes=palette.num_classes,
        class_pixels=manifest.class_pixels,
        presence_pixels=manifest.presence_pixels,
    ).to(world.device)
    seed_everything(config.seed)
    model = build_model(config, manifest, palette).to(world.device)
    optimizer = build_optimizer(model, config.optim)
    ema = Ema(model, config.trainer.ema_decay) if config.trainer.ema_decay else None
    validator = build_validator(config, manifest, palette, loss, world, accelerator.autocast)
    tracker = Tracker(
        config.tracking,
        accelerator,
        run_dir=run_dir,
        run_name=config.name,
        config=settings.to_mapping(config),
        palette=palette,
    )

    def train_batches(from_sample: int) -> Any:
        return train_loader(
            config.data,
            config.augment,
            manifest,
            config.data.train,
            seed=config.seed,
            channels=config.model.in_channels,
            num_classes=palette.num_classes,
            global_batch_size=config.trainer.global_batch_size,
            micro_batch_size=config.trainer.micro_batch_size
            or max(1, config.trainer.global_batch_size // world.world_size),
            rank=world.rank,
            world_size=world.world_size,
            from_sample=from_sample,
            pin_memory=world.device.type == "cuda",
        )

    def save(model: nn.Module, state: TrainState, name: str, report: Report | None) -> None:
        facts = {
            "step": state.step,
            "samples_seen": state.samples_seen,
            "run": config.name,
            "metric": {"name": "val/miou", "value": None if report is None else report.scores.miou},
            "report": None if report is None else report.to_mapping(),
        }
        save_model(
            run_dir / name,
            model.state_dict(),
            model=config.model,
            palette=palette,
            resize=manifest.resize,
            facts=facts,
        )

    return Trainer(
        accelerator=accelerator,
        world=world,
        model=model,
        optimizer=optimizer,
        ema=ema,
        loss=loss,
        optim_cfg=config.optim,
        schedule=Schedule.of(
            config.trainer, num_samples=manifest.num_samples, save_every=config.checkpoint.save_every
        ),
        global_batch_size=config.trainer.global_batch_size,
        num_samples=manifest.num_samples,
        seed=config.seed,
        train_batches=train_batches,
        validator=validator,
        save_model=save,
        checkpoints=Checkpoints(run_dir / "checkpoints", config.checkpoint),
        tracker=tracker,
        stop=StopSignal(),
    )


def build_model(config: Config, manifest: Manifest, palette: Palette) -> UNet:
    """The network, with the channel statistics of the training set inside."""
    mean, std = channel_statistics(manifest, config.model.in_channels)
    return UNet(config.model, num_classes=palette.num_classes, mean=mean, std=std)


def channel_statistics(manifest: Manifest, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, 0..255, of the channels that the decoder will deliver."""
    if channels == 3:
        return list(manifest.mean), list(manifest.std)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # Rec. 601, as the decoder's grey
    mean, std = torch.tensor(manifest.mean), torch.tensor(manifest.std)
    if channels == 1:
        return [float(luma @ mean.double())], [float(luma @ std.double())]
    return [*mean.tolist(), 0.0], [*std.tolist(), 255.0]


def build_validator(
    config: Config, train: Manifest, palette: Palette, loss: Loss, world: World, autocast: Any
) -> Validator | None:
    """The validation set, or None where the settings name none."""
    if config.data.val is None:
        return None
    manifest = Manifest.load(config.data.val)
    if manifest.palette_records != train.palette_records:
        raise ConfigError(
            f"data.val ({config.data.val}) and data.train ({config.data.train}) have different classes; "
            "shard both with the same Labels.txt and the same --ignore."
        )
    if not sum(manifest.class_pixels):
        raise ConfigError(
            f"data.val ({config.data.val}) has only ignored pixels, so it has no mIoU; use another."
        )
    resize = train.resize if manifest.resize != train.resize else None
    reader = ShardReader(config.data.val, manifest)
    return Validator(
        batches=val_loader(
            config.data,
            manifest,
            config.data.val,
            channels=config.model.in_channels,
            num_classes=palette.num_classes,
            batch_size=config.validation.batch_size,
            rank=world.rank,
            world_size=world.world_size,
        ),
        expected=Expected(config.data.val, manifest.num_samples, manifest.class_pixels),
        palette=palette,
        loss=loss,
        cfg=config.validation,
        world=world,
        autocast=autocast,
        resize=resize,
        key_of=reader.key,
        num_pictures=config.tracking.num_pictures if world.is_main else 0,
    )


def check_run_dir(run_dir: Path, config: Config, world: World) -> None:
    """Collective. Refuse to continue a run under other settings; then save the resolved settings in its folder."""
    saved = run_dir / CONFIG_FILE
    if (run_dir / "checkpoints" / "latest").exists() and saved.exists():
        if config.checkpoint.resume == "never":
            raise ConfigError(
                f"{run_dir} holds a run, and checkpoint.resume is never; choose another --name, "
                "or continue it with --checkpoint.resume auto."
            )
        changed = settings.differences(settings.read_yaml(saved), settings.to_mapping(config))
        for key, (before, after) in changed.items():
            if not key.startswith(RESULT_NEUTRAL):
                raise ConfigError(
                    f"{run_dir} was begun with {key} = {before}, now it is {after}; continuing would mix two "
                    f"runs. Choose another --name, or keep {key}."
                )
    barrier()  # nobody writes before everybody has read
    if world.is_main:
        storage.write_text(saved, settings.to_yaml(config))
