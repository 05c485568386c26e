"""The data path as loaders: training without end from any sample number, validation with each sample once."""

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from unetdist.data.access import DataConfig, fetch_ahead, open_reader
from unetdist.data.arena import Arena, FilledSlot
from unetdist.data.augment import Augmenter
from unetdist.data.augment_config import AugmentConfig
from unetdist.data.batch import Batch, batch_dtype
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.prefetch import Prefetcher
from unetdist.data.requests import MicroBatches, ValBatches, part_of, shards_of
from unetdist.data.samples import Samples, TrainDataset, ValDataset
from unetdist.data.workers import CAN_SHARE, items, work
from unetdist.errors import ConfigError, DataError
from unetdist.storage.folders import Folder


def train_loader(
    cfg: DataConfig,
    augment_cfg: AugmentConfig,
    manifest: Manifest,
    folder: str | Path | Folder,
    *,
    seed: int,
    channels: int,
    num_classes: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    from_sample: int = 0,
    native_from: int | None = None,
    pin_memory: bool = False,
) -> Generator[list[Batch], None, None]:
    """Endless steps of this rank, each the list of its micro-batches, beginning at sample `from_sample`.

    The samples of a step and their pixels are the same for any world size, number of workers and micro-batch
    size: they depend on `seed` and the position alone. `channels` is what the model takes (1, 3 or 4). From epoch
    `native_from` on nothing is scaled or mixed.
    `ConfigError` and `DataError` come at once where they can be known, else from the iterator.
    """
    blank_size = _train_size(augment_cfg, manifest, folder)
    check_batch_sizes(global_batch_size, micro_batch_size, world_size)
    order = Order(manifest.shard_sizes, seed=seed, lanes=cfg.lanes, window=cfg.window)
    reader = open_reader(cfg, folder, manifest)
    reader.check(rank=rank, world_size=world_size)
    upcoming = partial(order.upcoming, global_batch_size=global_batch_size, rank=rank, world_size=world_size)
    prefetcher = fetch_ahead(reader, upcoming, from_sample, local_world_size)
    accumulation = global_batch_size // (world_size * micro_batch_size)
    arena = None
    if cfg.num_workers and CAN_SHARE:
        # What workers have under way or ready, and two steps that the trainer may hold.
        num_slots = cfg.num_workers * cfg.prefetch + 2 * accumulation + 1
        arena = Arena(num_slots, batch_dtype(micro_batch_size, blank_size, channels, num_classes))
    augmenter = Augmenter(
        augment_cfg,
        seed=seed,
        class_pixels=manifest.class_pixels,
        mean=manifest.mean,
        native_from=native_from,
    )
    dataset = TrainDataset(
        Samples(reader, channels=channels, num_classes=num_classes),
        augmenter,
        on_bad_sample=cfg.on_bad_sample,
        blank_size=blank_size,
        arena=arena,
    )
    requests = MicroBatches(
        order,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        from_sample=from_sample,
        arena=arena,
        progress=prefetcher.position if prefetcher else None,
        has_partners=augmenter.mixer.is_on,
    )
    batches = work(
        dataset, requests, num_workers=cfg.num_workers, prefetch=cfg.prefetch, pin_memory=pin_memory
    )
    return _steps(batches, accumulation, cfg.max_bad_samples, reader.folder, prefetcher)


def val_loader(
    cfg: DataConfig,
    manifest: Manifest,
    folder: str | Path | Folder,
    *,
    channels: int,
    num_classes: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    local_world_size: int = 1,
    pin_memory: bool = False,
) -> "ValLoader":
    """Whole images of this rank's part of the samples: each once, unchanged, none padded."""
    if batch_size < 1:
        raise ConfigError(f"batch_size ({batch_size}) must be 1 or more; use 8.")
    reader = open_reader(cfg, folder, manifest)
    reader.check(rank=rank, world_size=world_size)
    mine = part_of(manifest.num_samples, rank=rank, world_size=world_size)
    prefetcher = fetch_ahead(
        reader, lambda _: shards_of(manifest.shard_sizes, mine), mine.start, local_world_size
    )
    dataset = ValDataset(Samples(reader, channels=channels, num_classes=num_classes))
    requests = ValBatches(
        mine,
        batch_size=batch_size,
        progress=prefetcher.position if prefetcher else None,
    )
    batches = work(
        dataset, requests, num_workers=cfg.num_workers, prefetch=cfg.prefetch, pin_memory=pin_memory
    )
    return ValLoader(batches, prefetcher)


class ValLoader:
    """Batches of at most `batch_size` consecutive samples of equal size; can be iterated again and again."""

    def __init__(self, batches: "DataLoader[Any]", prefetcher: Prefetcher | None = None) -> None:
        self._batches = batches
        self._prefetcher = prefetcher  # It ends with this object.

    def __iter__(self) -> Iterator[Batch]:
        """Every sample of this rank once; a bad sample always raises, for the metric is exact."""
        for batches in items(self._batches):
            yield from batches


def _train_size(
    augment_cfg: AugmentConfig, manifest: Manifest, folder: str | Path | Folder
) -> tuple[int, int]:
    """(height, width) of what is trained on; `ConfigError` where whole pictures differ."""
    if augment_cfg.crop_size is None and manifest.min_size != manifest.max_size:
        (low_h, low_w), (high_h, high_w) = manifest.min_size, manifest.max_size
        raise ConfigError(
            f"augment.crop_size (None) must be set, because the images in {folder} differ in size "
            f"({low_h}..{high_h} high, {low_w}..{high_w} wide); use [256, 256], or write the shards with "
            "--resize."
        )
    return augment_cfg.crop_size or manifest.max_size


def check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """`ConfigError` unless the global batch falls into equal micro-batches on all ranks."""
    unit = world_size * micro_batch_size
    if micro_batch_size < 1 or global_batch_size < 1:
        raise ConfigError(
            f"global_batch_size ({global_batch_size}) and micro_batch_size ({micro_batch_size}) must be 1 or "
            "more; use 32 and 8."
        )
    if global_batch_size % unit:
        below = global_batch_size // unit * unit
        advice = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(
            f"trainer.global_batch_size ({global_batch_size}) must be divisible by the processes ({world_size}) times "
            f"trainer.micro_batch_size ({micro_batch_size}); use {advice}."
        )


def _steps(
    batches: "DataLoader[Any]",
    accumulation: int,
    max_bad_samples: int,
    folder: Folder,
    prefetcher: Prefetcher | None,
) -> Generator[list[Batch], None, None]:
    """The micro-batches in groups of `accumulation`; `DataError` once more than `max_bad_samples` were blank."""
    num_bad = 0
    step: list[Batch] = []
    try:
        for ready in items(batches):
            batch: Batch = ready.batch() if isinstance(ready, FilledSlot) else ready
            num_bad += batch.num_bad
            if num_bad > max_bad_samples:
                raise DataError(
                    f"{num_bad} samples could not be used, more than data.max_bad_samples ({max_bad_samples}); "
                    "the log names them: write their shards again, or raise the limit.",
                    source=folder,
                )
            step.append(batch)
            if len(step) == accumulation:
                yield step
                step = []
    finally:
        if prefetcher:
            prefetcher.close()
