"""The settings of the data, and where they lead: a folder, its manifest, a reader with its cache, who fetches ahead."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unetdist.data.cache import ShardCache
from unetdist.data.manifest import Manifest
from unetdist.data.prefetch import Prefetcher, Upcoming
from unetdist.data.reader import ShardReader
from unetdist.data.workers import CAN_SHARE
from unetdist.errors import ConfigError
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import is_url
from unetdist.storage.retries import set_retry_s


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the section `data`."""

    train: str
    """Folder of the training shards: a path, or a URL such as s3://bucket/train, gs://, hf://, https://."""
    val: str | None = None
    """Folder of the validation shards, likewise; None: no validation."""
    num_workers: int = 2
    """Processes per rank that read, decode and augment; 0: the training process does it."""
    prefetch: int = 4
    """Micro-batches that each worker prepares ahead."""
    lanes: int = 64
    """Parts of an epoch that are read side by side; fixed for the life of a run, best a multiple of the
    number of processes."""
    window: int = 4096
    """Samples of a lane that are shuffled together; data sets up to this size are shuffled as a whole."""
    on_bad_sample: Literal["raise", "blank"] = "raise"
    """A training sample that cannot be used stops the run, or becomes a blank image, wholly ignored."""
    max_bad_samples: int = 100
    """Blank samples (per process, since its start) after which the run stops nevertheless."""
    cache_dir: str = "~/.cache/unetdist/shards"
    """Where shards of other machines are kept, by any number of runs: a folder on a disk of this machine."""
    cache_gb: float = 100.0
    """What all of them may take, in GB; the least recently used go first. 0: none are kept, and each sample is
    a request."""
    retry_s: float = 300.0
    """Seconds for which a server that does not answer is tried again."""
    RETIRED: ClassVar = {"allow_pipe": False}
    """Settings that runs of older versions name, and the values with which they change nothing."""

    def __post_init__(self) -> None:
        for name, least, advice in (
            ("num_workers", 0, 2),
            ("prefetch", 1, 4),
            ("lanes", 1, 64),
            ("window", 1, 4096),
            ("max_bad_samples", 0, 100),
            ("cache_gb", 0, 100),
            ("retry_s", 0, 300),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"data.{name} ({getattr(self, name)}) must be {least} or more; use {advice}."
                )


def open_data(cfg: DataConfig, location: str) -> tuple[Folder, Manifest]:
    """The folder of shards at a path or URL, and its manifest; first thing of a run that may ask a server."""
    set_retry_s(cfg.retry_s)
    folder = open_folder(location)
    return folder, Manifest.load(folder)


def open_reader(cfg: DataConfig, folder: str | Path | Folder, manifest: Manifest) -> ShardReader:
    """With a cache where shards lie on other machines, unless it is switched off."""
    folder = open_folder(folder)
    is_remote = not folder.is_local or any(is_url(shard.name) for shard in manifest.shards)
    cache = None
    if is_remote and cfg.cache_gb:
        cache = ShardCache(Path(cfg.cache_dir).expanduser(), int(cfg.cache_gb * 1e9))
    return ShardReader(folder, manifest, cache=cache)


def fetch_ahead(
    reader: ShardReader, upcoming: Upcoming, first_position: int, local_world_size: int
) -> Prefetcher | None:
    """A process that fetches shards before they are needed; the ranks of a machine share half its cache.

    None where there is nothing to fetch, and where processes cannot be forked: samples are then read one by one.
    """
    if reader.cache is None or not CAN_SHARE:
        return None
    return Prefetcher(
        reader.folder,
        reader.manifest,
        reader.cache,
        upcoming,
        first_position=first_position,
        ahead_bytes=reader.cache.limit_bytes // 2 // local_world_size,
    )
