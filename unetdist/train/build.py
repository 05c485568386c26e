"""From settings to a wired run: the only module that knows all parts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unetdist.cli import settings
from unetdist.cli.commands import typed
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger, set_up_logging
from unetdist.data.augment import LUMA
from unetdist.data.batch import Batch
from unetdist.data.decode import CHANNEL_MODES
from unetdist.data.labels import Palette
from unetdist.data.loader import check_batch_sizes, open_data, train_loader
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.distributed.collectives import Accelerator, World, log_ranks, make_accelerator, seed_everything, world_of
from unetdist.distributed.gradient_tree import is_whole_subtree
from unetdist.distributed.rendezvous import open_store
from unetdist.distributed.signals import StopSignal
from unetdist.distributed.watchdog import Watchdog
from unetdist.errors import ConfigError, DataError
from unetdist.evaluation.evaluate import Report
from unetdist.evaluation.validator import Validator
from unetdist.model.config import check_norm
from unetdist.model.losses import Loss, build_loss
from unetdist.model.saved_model import save_model
from unetdist.model.unet import UNet
from unetdist.predict.hub import CARD_FILE, card_of
from unetdist.storage.files import write_text
from unetdist.storage.folders import Folder
from unetdist.tracking.meter import Meter
from unetdist.tracking.tracker import Tracker
from unetdist.train.checkpoint import Checkpoints, RunState
from unetdist.train.config import Config
from unetdist.train.model_with_loss import ModelWithLoss
from unetdist.train.optim import Ema, build_optimizer, lr_factor
from unetdist.train.performance import FastPath, agree_on_threads, choose, prepare
from unetdist.train.run_folder import claim_run_folder, name_of_run
from unetdist.train.run_status import RunStatus
from unetdist.train.step import TrainStep, prefetch_to_device
from unetdist.train.trainer import Schedule, Trainer, TrainState


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The training shards, and how this run reads them."""

    folder: Folder
    manifest: Manifest
    palette: Palette
    schedule: Schedule
    micro_batch_size: int
    native_from: int | None
    """Epoch from which images are neither scaled nor mixed; None: never."""


def build_trainer(config: Config, *, exits_on_second_signal: bool = True) -> Trainer:
    """Collective. Check and wire a run. Everything that can be wrong is found here, before time is spent.

    A signal stops the run with a checkpoint; a second one ends the process, or raises KeyboardInterrupt in it.
    """
    trainer = config.trainer
    accelerator = make_accelerator(mixed_precision=trainer.mixed_precision, timeout_s=trainer.timeout_s)
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    if world.world_size > 1:
        log_ranks(world)
    trainer = replace(trainer, mixed_precision=accelerator.mixed_precision)  # also where the launcher chose it
    config = replace(config, name=name_of_run(config.name, world), trainer=trainer)
    run_dir = Path(config.runs_dir) / config.name
    values = public(settings.to_mapping(config))
    defaults = settings.defaults(Config)
    claim, fixed = claim_run_folder(run_dir, values, cfg=config.checkpoint, world=world, defaults=defaults)
    with claim:  # a notebook that keeps the exception of a failed build could otherwise not build again
        logger.info("run %s, %s", run_dir, world.describe())
        data = open_training_set(config, world, fixed.get("micro_batch_size"))
        fixed["micro_batch_size"] = data.micro_batch_size
        if world.device.type == "cpu":
            fixed["num_threads"] = agree_on_threads(fixed.get("num_threads"))
        steps = f"{data.schedule.max_steps} steps of {config.trainer.global_batch_size} images"
        logger.info("%s; %d training images, %d classes", steps, data.manifest.num_samples, data.palette.num_classes)
        logger.info("results: %s", promise(config, world, data.micro_batch_size))
        network, path = _build_network(config, data, world)
        validator = _build_validator(config, data, network.loss, accelerator, world)
        tracker = Tracker(
            config.tracking, accelerator, run_dir=run_dir, run_name=config.name, config=values, palette=data.palette
        )
        # From here on nothing in this function fails for a user's reason, so that nothing is left running.
        stop = StopSignal(os._exit if exits_on_second_signal else None)
        status = RunStatus(run_dir, is_main=world.is_main, machine=world.describe(), performance=path.reason)
        limit_s = config.trainer.heartbeat_s
        watchdog = Watchdog(
            open_store("watchdog"), world, limit_s=limit_s, folder=run_dir, stop=stop, record=status.fail
        )
        step = _build_step(config, data, network, accelerator, world, watchdog)
        checkpoints = config.checkpoint.folder_of(run_dir)
        return Trainer(
            accelerator=accelerator,
            world=world,
            model=network.model,
            ema=step.ema,
            step=step,
            run_state=RunState(network.model, step.optimizer, step.ema, accelerator.scaler, step.statistics),
            schedule=data.schedule,
            global_batch_size=config.trainer.global_batch_size,
            num_samples=data.manifest.num_samples,
            max_bad_steps=config.trainer.max_bad_steps,
            train_batches=partial(train_batches, config, data, world),
            validator=validator,
            save_model=partial(save_weights, config, data, run_dir),
            checkpoints=Checkpoints(checkpoints, config.checkpoint, data=data.manifest.fingerprint),
            tracker=tracker,
            meter=step.meter,
            stop=stop,
            watchdog=watchdog,
            status=status,
            claim=claim.pop_all(),
            fixed=fixed,
        )


def promise(config: Config, world: World, micro_batch_size: int) -> str:
    """Say on which numbers of processes the run has the same bits."""
    number = config.trainer.global_batch_size // micro_batch_size
    fixed = f"trainer.micro_batch_size {micro_batch_size}"
    on_cpu = world.device.type == "cpu"
    if config.model.norm == "sync_batch" or not (on_cpu or config.trainer.reproducible):
        return f"equal up to rounding on any number of processes: {fixed}, model.norm {config.model.norm}"
    same = [size for size in range(1, number + 1) if number % size == 0 and is_whole_subtree(number, size)]
    if number == 1:
        fixed += " (a smaller one allows more processes)"
    how = "the same bits" if world.world_size in same else f"up to rounding on {world.world_size}, the same bits"
    if on_cpu:
        threads = torch.get_num_threads()
        fixed += f", {threads} thread{'s' if threads > 1 else ''} per process"
    return f"{how} on {', '.join(map(str, same))} process{'es' if len(same) > 1 else ''}: {fixed}"


def _build_network(config: Config, data: TrainingSet, world: World) -> tuple[ModelWithLoss, FastPath]:
    """Build network and loss on the device, and choose how they are made fast."""
    loss = build_loss(
        config.loss,
        num_classes=data.palette.num_classes,
        class_pixels=data.manifest.class_pixels,
        presence_pixels=data.manifest.presence_pixels,
    ).to(world.device)
    check_norm(config.model, device_type=world.device.type, world_size=world.world_size)
    seed_everything(config.seed)
    mean, std = channel_statistics(data.manifest, config.model.in_channels)
    model = UNet(config.model, num_classes=data.palette.num_classes, mean=mean, std=std).to(world.device)
    path = choose(
        config.performance,
        world,
        config.model,
        image_size=config.augment.crop_size or data.manifest.max_size,
        max_steps=data.schedule.max_steps,
        global_batch_size=config.trainer.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        mixed_precision=config.trainer.mixed_precision,
        reproducible=config.trainer.reproducible,
    )
    if world.device.type == "cuda" or config.performance == "off":  # else there is nothing to choose
        logger.info("performance: %s", path.reason)
    prepare(path)
    network = ModelWithLoss(
        model, loss, compiler=path.compiler, cuda_graphs=path.cuda_graphs, is_deterministic=path.is_deterministic
    )
    return network, path


def _build_step(
    config: Config,
    data: TrainingSet,
    network: ModelWithLoss,
    accelerator: Accelerator,
    world: World,
    watchdog: Watchdog,
) -> TrainStep:
    ema_decay = config.trainer.ema_decay
    return TrainStep(
        accelerator=accelerator,
        world=world,
        model_with_loss=network,
        optimizer=build_optimizer(network.model, config.optim),
        ema=Ema(network.model, ema_decay) if ema_decay else None,
        optim_cfg=config.optim,
        max_steps=data.schedule.max_steps,
        seed=config.seed,
        num_micro_batches=config.trainer.global_batch_size // data.micro_batch_size,
        meter=Meter(world),
        watchdog=watchdog,
        source_of=ShardReader(data.folder, data.manifest).source,
    )


def _build_validator(
    config: Config, data: TrainingSet, loss: Loss, accelerator: Accelerator, world: World
) -> Validator | None:
    if config.data.val is None:
        return None
    return Validator(
        config.data.val,
        model_config=config.model,
        palette=data.palette,
        resize=data.manifest.resize,
        image_range=data.manifest.image_range,
        loss=loss,
        cfg=config.validation,
        data_cfg=config.data,
        num_pictures=config.tracking.num_pictures,
        world=world,
        autocast=accelerator.autocast,
    )


def open_training_set(config: Config, world: World, kept: int | None = None) -> TrainingSet:
    """Open the training shards, and check that the settings fit them and this launch.

    Without `trainer.micro_batch_size`, a run continues with the number that it `kept`, if these processes can.
    """
    folder, manifest = open_data(config.data, config.data.train)
    if not any(manifest.class_pixels):
        raise DataError(
            "all pixels of its masks are ignored, and nothing is left to learn; write the shards again with the label "
            "file of these masks.",
            source=config.data.train,
        )
    if manifest.num_classes == 1:
        raise DataError(
            "its masks have one class, so that any prediction is right; give the background a line in the label file "
            "too, and write the shards again.",
            source=config.data.train,
        )
    if world.is_main and manifest.channels > config.model.in_channels == 3:
        logger.warning(
            "the training images have %d bands and model.in_channels is 3: the last one (alpha, infrared) is not used; "
            "model.in_channels 4 uses it.",
            manifest.channels,
        )
    cfg = config.trainer
    schedule = Schedule.of(cfg, num_samples=manifest.num_samples, save_every=config.checkpoint.save_every)
    lr_factor(0, schedule.max_steps, config.optim)  # refuses a warm-up that is longer than the run
    if world.is_main:
        warn_of_settings(config, manifest, schedule.max_steps)
    own = max(1, cfg.global_batch_size // world.world_size)
    micro_batch_size = cfg.micro_batch_size or kept or own
    if cfg.micro_batch_size is None and cfg.global_batch_size % (world.world_size * micro_batch_size):
        micro_batch_size = own
    check_batch_sizes(cfg.global_batch_size, micro_batch_size, world.world_size)
    if world.is_main and cfg.micro_batch_size is None and kept not in (None, micro_batch_size):
        told = (
            "trainer.micro_batch_size was %d, and is %d on %d processes: results from here on are equal up to rounding"
        )
        logger.warning(told, kept, micro_batch_size, world.world_size)
    epochs = round(schedule.max_steps * cfg.global_batch_size / manifest.num_samples)
    return TrainingSet(
        folder=folder,
        manifest=manifest,
        palette=Palette.from_records(manifest.palette_records),
        schedule=schedule,
        micro_batch_size=micro_batch_size,
        native_from=first_native_epoch(config.augment.native_epochs, epochs),
    )


def warn_of_settings(config: Config, manifest: Manifest, max_steps: int) -> None:
    """Warn of settings that are possible, but hardly meant."""
    batch, eval_every, crop = config.trainer.global_batch_size, config.trainer.eval_every, config.augment.crop_size
    samples, largest = manifest.num_samples, [side * config.augment.scale_max for side in manifest.max_size]
    for is_odd, told in (
        (
            batch > samples,
            f"trainer.global_batch_size ({batch}) is more than the {samples} training samples: a step takes some of "
            f"them twice; use at most {samples}.",
        ),
        (
            config.data.val and eval_every and eval_every > max_steps,
            f"trainer.eval_every ({eval_every}) is more than the {max_steps} steps of the run: only its last weights "
            "are validated.",
        ),
        (
            crop and crop[0] > largest[0] and crop[1] > largest[1],
            f"augment.crop_size ({list(crop or ())}) is larger than every image, at most {list(manifest.max_size)}: "
            "the rest of each crop is empty.",
        ),
        (
            config.data.val and config.data.val.rstrip("/") == config.data.train.rstrip("/"),
            "data.val is data.train, so that scores say nothing about new images; "
            f"`{typed('shard')} --val-fraction 0.2` keeps samples for data.val.",
        ),
        (config.optim.lr > 1, f"optim.lr ({config.optim.lr}) is above 1; 0.001 (adam) to 0.1 (sgd) is usual."),
    ):
        if is_odd:
            logger.warning("%s", told)


def first_native_epoch(native_epochs: int, epochs: int) -> int | None:
    """The epoch that starts `native_epochs` before the end of a run of `epochs`; None for 0."""
    if native_epochs == 0:
        return None
    if native_epochs > epochs:
        raise ConfigError(
            f"augment.native_epochs ({native_epochs}) must be at most the {epochs} epochs of the run; use "
            f"{epochs // 10}."
        )
    return epochs - native_epochs


def channel_statistics(manifest: Manifest, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, 0..255, of the channels that the decoder will deliver."""
    if channels not in CHANNEL_MODES:
        raise ConfigError(f"model.in_channels ({channels}) must be 1 (grey), 3 (RGB) or 4 (RGBA); use 3.")
    if channels == 3:
        return list(manifest.mean), list(manifest.std)
    luma = torch.tensor(LUMA, dtype=torch.float64)  # the decoder's weights for grey
    mean, std = torch.tensor(manifest.mean), torch.tensor(manifest.std)
    if channels == 1:
        # The spread is exact for grey images; for colours it is the upper bound that their channels allow.
        return [float(luma @ mean.double())], [float(luma @ std.double())]
    return [*mean.tolist(), 0.0], [*std.tolist(), 255.0]


def train_batches(config: Config, data: TrainingSet, world: World, from_sample: int) -> Iterator[list[Batch]]:
    """Endless steps of this rank on its device, from a sample number on."""
    batches = train_loader(
        config.data,
        config.augment,
        data.manifest,
        data.folder,
        seed=config.seed,
        channels=config.model.in_channels,
        num_classes=data.palette.num_classes,
        global_batch_size=config.trainer.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=world.local_world_size,
        from_sample=from_sample,
        native_from=data.native_from,
        pin_memory=world.device.type == "cuda",
    )
    return prefetch_to_device(batches, world.device)


def save_weights(
    config: Config,
    data: TrainingSet,
    run_dir: Path,
    model: nn.Module,
    state: TrainState,
    name: str,
    report: Report | None,
) -> None:
    """Write weights for prediction to the folder `name` of the run, with the scores that they were given."""
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
        palette=data.palette,
        resize=data.manifest.resize,
        image_range=data.manifest.image_range,
        facts=facts,
    )
    write_text(run_dir / name / CARD_FILE, card_of(run_dir / name))
