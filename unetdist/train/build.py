"""From settings to a wired run: the only place that knows all parts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger, set_up_logging
from unetdist.data.augment import LUMA
from unetdist.data.batch import Batch
from unetdist.data.decode import CHANNEL_MODES
from unetdist.data.labels import Palette
from unetdist.data.loader import check_batch_sizes, open_data, train_loader
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.distributed import hardware
from unetdist.distributed.collectives import (
    Accelerator,
    StopSignal,
    World,
    log_ranks,
    make_accelerator,
    seed_everything,
    world_of,
)
from unetdist.distributed.rendezvous import open_store
from unetdist.distributed.watchdog import Watchdog
from unetdist.errors import ConfigError, DataError
from unetdist.evaluation.evaluate import Report
from unetdist.evaluation.scoring import build_validator
from unetdist.model.config import check_norm
from unetdist.model.losses import build_loss
from unetdist.model.saved_model import save_model
from unetdist.model.unet import UNet
from unetdist.predict.model_card import CARD_FILE, card_of
from unetdist.storage.files import write_text
from unetdist.tracking import Tracker
from unetdist.train.checkpoint import Checkpoints
from unetdist.train.config import Config
from unetdist.train.ema import Ema
from unetdist.train.optim import build_optimizer, lr_factor
from unetdist.train.performance import FastPath, choose, gather, prepare
from unetdist.train.prefetch import feed
from unetdist.train.run_folder import claim_run_folder
from unetdist.train.run_status import Attempt
from unetdist.train.schedule import Schedule, TrainState, first_native_epoch
from unetdist.train.share import LossShare
from unetdist.train.trainer import Trainer


def build_trainer(config: Config, *, change: Callable[[FastPath], FastPath] = lambda path: path) -> Trainer:
    """Collective. Check and wire a run; everything that can be wrong is found here, before time is spent.

    `change` makes another fast path of the one that was chosen, for who measures what each part of it is worth.
    """
    accelerator = make_accelerator(
        mixed_precision=config.trainer.mixed_precision, timeout_s=config.trainer.timeout_s
    )
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    log_ranks(world)
    run_dir = Path(config.runs_dir) / config.name
    values = public(settings.to_mapping(config))
    claim = claim_run_folder(
        run_dir, values, cfg=config.checkpoint, world=world, defaults=settings.defaults(Config)
    )
    logger.info("run %s", run_dir)
    try:
        return _wire(config, accelerator, world, run_dir, values, claim, change)
    except BaseException:
        claim.close()  # a notebook that keeps the exception could not build again
        raise


def _wire(
    config: Config,
    accelerator: Accelerator,
    world: World,
    run_dir: Path,
    values: Mapping[str, Any],
    claim: ExitStack,
    change: Callable[[FastPath], FastPath],
) -> Trainer:
    folder, manifest = open_data(config.data, config.data.train)
    if not any(manifest.class_pixels):
        raise DataError(
            "all pixels of its masks are ignored, and nothing is left to learn; write the shards again with the label "
            "file of these masks.",
            source=config.data.train,
        )
    if world.is_main and manifest.channels > config.model.in_channels == 3:
        logger.warning(
            "the training images have %d bands and model.in_channels is 3: the last one (alpha, infrared) is not used; "
            "model.in_channels 4 uses it.",
            manifest.channels,
        )
    schedule = Schedule.of(
        config.trainer, num_samples=manifest.num_samples, save_every=config.checkpoint.save_every
    )
    lr_factor(0, schedule.max_steps, config.optim)  # refuses a warm-up that is longer than the run
    native_from = first_native_epoch(
        config.augment.native_epochs,
        schedule,
        global_batch_size=config.trainer.global_batch_size,
        num_samples=manifest.num_samples,
    )
    micro_batch_size = config.trainer.micro_batch_size or max(
        1, config.trainer.global_batch_size // world.world_size
    )
    check_batch_sizes(config.trainer.global_batch_size, micro_batch_size, world.world_size)
    palette = Palette.from_records(manifest.palette_records)
    loss = build_loss(
        config.loss,
        num_classes=palette.num_classes,
        class_pixels=manifest.class_pixels,
        presence_pixels=manifest.presence_pixels,
    ).to(world.device)
    check_norm(config.model, device_type=world.device.type, world_size=world.world_size)
    seed_everything(config.seed)
    model = build_model(config, manifest, palette).to(world.device)
    path = choose(
        config.performance,
        gather(
            world,
            model_config=config.model,
            num_classes=palette.num_classes,
            manifest=manifest,
            crop_size=config.augment.crop_size,
            schedule=schedule,
            batch_sizes=(config.trainer.global_batch_size, micro_batch_size),
            mixed_precision=config.trainer.mixed_precision,
        ),
    )
    path = change(path)
    logger.info("performance: %s", path)
    prepare(path)
    optimizer = build_optimizer(model, config.optim)
    ema = Ema(model, config.trainer.ema_decay) if config.trainer.ema_decay else None
    validator = None
    if config.data.val is not None:
        validator = build_validator(
            config.data.val,
            model_config=config.model,
            palette=palette,
            resize=manifest.resize,
            image_range=manifest.image_range,
            loss=loss,
            cfg=config.validation,
            data_cfg=config.data,
            num_pictures=config.tracking.num_pictures,
            world=world,
            autocast=accelerator.autocast,
        )
    tracker = Tracker(
        config.tracking,
        accelerator,
        run_dir=run_dir,
        run_name=config.name,
        config=values,
        palette=palette,
    )

    def train_batches(from_sample: int) -> Iterator[list[Batch]]:
        batches = train_loader(
            config.data,
            config.augment,
            manifest,
            folder,
            seed=config.seed,
            channels=config.model.in_channels,
            num_classes=palette.num_classes,
            global_batch_size=config.trainer.global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=world.rank,
            world_size=world.world_size,
            local_world_size=world.local_world_size,
            from_sample=from_sample,
            native_from=native_from,
            pin_memory=world.device.type == "cuda",
        )
        return feed(batches, world.device)

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
            image_range=manifest.image_range,
            facts=facts,
        )
        write_text(run_dir / name / CARD_FILE, card_of(run_dir / name))

    stop = StopSignal()
    attempt = Attempt(
        run_dir,
        is_main=world.is_main,
        machine=hardware.describe(world),
        performance=str(path),
        claim=claim,
    )
    watchdog = Watchdog(
        open_store("watchdog"),
        world,
        limit_s=config.trainer.heartbeat_s,
        folder=run_dir,
        stop=stop,
        record=attempt.fail,
    )
    return Trainer(
        accelerator=accelerator,
        world=world,
        model=model,
        optimizer=optimizer,
        ema=ema,
        share=LossShare(model, loss, compiler=path.compiler, cuda_graphs=path.cuda_graphs),
        optim_cfg=config.optim,
        schedule=schedule,
        global_batch_size=config.trainer.global_batch_size,
        num_samples=manifest.num_samples,
        seed=config.seed,
        max_bad_steps=config.trainer.max_bad_steps,
        source_of=ShardReader(folder, manifest).source,
        train_batches=train_batches,
        validator=validator,
        save_model=save,
        checkpoints=Checkpoints(
            config.checkpoint.folder_of(run_dir), config.checkpoint, data=manifest.fingerprint
        ),
        tracker=tracker,
        stop=stop,
        watchdog=watchdog,
        attempt=attempt,
    )


def build_model(config: Config, manifest: Manifest, palette: Palette) -> UNet:
    """The network, with the channel statistics of the training set inside."""
    mean, std = channel_statistics(manifest, config.model.in_channels)
    return UNet(config.model, num_classes=palette.num_classes, mean=mean, std=std)


def channel_statistics(manifest: Manifest, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, 0..255, of the channels that the decoder will deliver."""
    if channels not in CHANNEL_MODES:
        raise ConfigError(f"model.in_channels ({channels}) must be 1 (grey), 3 (RGB) or 4 (RGBA); use 3.")
    if channels == 3:
        return list(manifest.mean), list(manifest.std)
    luma = torch.tensor(LUMA, dtype=torch.float64)  # as the decoder's grey
    mean, std = torch.tensor(manifest.mean), torch.tensor(manifest.std)
    if channels == 1:
        # The spread is exact for grey images; of colours it is the upper bound that their channels allow.
        return [float(luma @ mean.double())], [float(luma @ std.double())]
    return [*mean.tolist(), 0.0], [*std.tolist(), 255.0]
