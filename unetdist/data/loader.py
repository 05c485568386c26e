"""From settings to loaders: training without end from any sample number, validation with each sample once."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from unetdist.data.augment import Augmenter
from unetdist.data.batch import Batch, BatchPool, BatchSlot, batch_dtype
from unetdist.data.cache import ShardCache
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.prefetch import Prefetcher, Upcoming
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples, TrainDataset, ValDataset
from unetdist.data.workers import CAN_SHARE, ValBatches, items, micro_batches, part_of, shards_of, work
from unetdist.errors import ConfigError, DataError
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import set_retry_s


def open_data(cfg: DataConfig, location: str) -> tuple[Folder, Manifest]:
    """The folder of shards at a path or URL, and its manifest."""
    set_retry_s(cfg.retry_s)  # before the first request of a run
    folder = open_folder(location)
    return folder, Manifest.load(folder)


def open_reader(cfg: DataConfig, folder: str | Path | Folder, manifest: Manifest) -> ShardReader:
    """A reader of the shards, with a cache for remote ones unless `cache_gb` is 0."""
    folder = open_folder(folder)
    cache = None
    if cfg.cache_gb and not all(folder.is_in_place(shard.name) for shard in manifest.shards):
        cache = ShardCache(Path(cfg.cache_dir).expanduser(), int(cfg.cache_gb * 1e9))
    return ShardReader(folder, manifest, cache=cache)


def fetch_ahead(
    reader: ShardReader, upcoming: Upcoming, first_position: int, local_world_size: int
) -> Prefetcher | None:
    """Start a process that fetches shards before they are needed; None where nothing is remote.

    The ranks of a machine share half of its cache. Without fork there is no such process: samples are read one by one.
    """
    if reader.cache is None or not CAN_SHARE:
        return None
    ahead_bytes = reader.cache.limit_bytes // 2 // local_world_size
    return Prefetcher(
        reader.folder, reader.manifest, reader.cache, upcoming, ahead_bytes=ahead_bytes, first_position=first_position
    )


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

    Samples and pixels of a step depend on `seed` and its position alone, not on processes, workers or micro-batches.
    `channels` is what the model takes (1, 3 or 4). From epoch `native_from` on nothing is scaled or mixed.
    `ConfigError` and `DataError` come at once if possible, otherwise from the iterator.
    """
    check_batch_sizes(global_batch_size, micro_batch_size, world_size)
    part = {"global_batch_size": global_batch_size, "rank": rank, "world_size": world_size}
    size = _train_size(augment_cfg, manifest, folder)
    order = Order(manifest.shard_sizes, seed=seed, lanes=cfg.lanes, window=cfg.window)
    reader = open_reader(cfg, folder, manifest)
    # Now rather than at the first sample that is missing, hours later.
    reader.check(rank=rank, world_size=world_size)
    prefetcher = fetch_ahead(reader, partial(order.upcoming, **part), from_sample, local_world_size)
    accumulation = global_batch_size // (world_size * micro_batch_size)
    pool = None
    if cfg.num_workers and CAN_SHARE:
        # The batches that workers have in progress or ready, and two steps that the trainer may hold.
        num_slots = cfg.num_workers * cfg.prefetch + 2 * accumulation + 1
        pool = BatchPool(num_slots, batch_dtype(micro_batch_size, size, channels, num_classes))
    augmenter = Augmenter(
        augment_cfg, seed=seed, class_pixels=manifest.class_pixels, mean=manifest.mean, native_from=native_from
    )
    samples = Samples(reader, channels=channels, num_classes=num_classes)
    dataset = TrainDataset(samples, augmenter, on_bad_sample=cfg.on_bad_sample, blank_size=size, pool=pool)
    requests = micro_batches(
        order,
        micro_batch_size=micro_batch_size,
        from_sample=from_sample,
        pool=pool,
        progress=prefetcher and prefetcher.position,
        has_partners=augmenter.mixer.is_on,
        **part,
    )
    batches = work(dataset, requests, num_workers=cfg.num_workers, prefetch=cfg.prefetch, pin_memory=pin_memory)
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
    """Whole images of this rank's part of the samples: each once, unchanged and without padding."""
    if batch_size < 1:
        raise ConfigError(f"batch_size ({batch_size}) must be 1 or more; use 8.")
    reader = open_reader(cfg, folder, manifest)
    reader.check(rank=rank, world_size=world_size)
    mine = part_of(manifest.num_samples, rank=rank, world_size=world_size)
    prefetcher = fetch_ahead(reader, lambda _: shards_of(manifest.shard_sizes, mine), mine.start, local_world_size)
    dataset = ValDataset(Samples(reader, channels=channels, num_classes=num_classes))
    requests = ValBatches(mine, batch_size=batch_size, progress=prefetcher and prefetcher.position)
    batches = work(dataset, requests, num_workers=cfg.num_workers, prefetch=cfg.prefetch, pin_memory=pin_memory)
    return ValLoader(batches, prefetcher)


@dataclass(frozen=True)
class ValLoader:
    """Batches of at most `batch_size` consecutive samples of equal size; can be iterated again and again."""

    loader: "DataLoader[Any]"
    prefetcher: Prefetcher | None = None
    """Ends with this object."""

    def __iter__(self) -> Iterator[Batch]:
        """Every sample of this rank once. A bad sample always raises, or the metric would not be exact."""
        for batches in items(self.loader):
            yield from batches


def _train_size(augment_cfg: AugmentConfig, manifest: Manifest, folder: str | Path | Folder) -> tuple[int, int]:
    """(height, width) of the training images; `ConfigError` if whole images differ in size."""
    if augment_cfg.crop_size is None and manifest.min_size != manifest.max_size:
        (low_h, low_w), (high_h, high_w) = manifest.min_size, manifest.max_size
        raise ConfigError(
            f"augment.crop_size (None) must be set, because the images in {folder} differ in size "
            f"({low_h}..{high_h} high, {low_w}..{high_w} wide); use [256, 256], or write the shards with "
            "--resize."
        )
    return augment_cfg.crop_size or manifest.max_size


def check_batch_sizes(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Raise `ConfigError` unless the global batch splits into equal micro-batches on all ranks."""
    unit = world_size * micro_batch_size
    if micro_batch_size < 1 or global_batch_size < 1:
        raise ConfigError(
            f"global_batch_size ({global_batch_size}) and micro_batch_size ({micro_batch_size}) must be 1 or "
            "more; use 32 and 8."
        )
    if global_batch_size % unit:
        below = global_batch_size // unit * unit
        advice = f"{below} or {below + unit}" if below else f"{unit}"
        if global_batch_size % world_size == 0:
            advice += ", or --trainer.micro_batch_size null"
        raise ConfigError(
            f"trainer.global_batch_size ({global_batch_size}) must be divisible by the processes ({world_size}) times "
            f"trainer.micro_batch_size ({micro_batch_size}); use {advice}."
        )


def _steps(
    batches: "DataLoader[Any]", accumulation: int, max_bad_samples: int, folder: Folder, prefetcher: Prefetcher | None
) -> Generator[list[Batch], None, None]:
    """The micro-batches in groups of `accumulation`; `DataError` once more than `max_bad_samples` were blank."""
    num_bad = 0
    step: list[Batch] = []
    try:
        for ready in items(batches):
            batch: Batch = ready.batch() if isinstance(ready, BatchSlot) else ready
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
