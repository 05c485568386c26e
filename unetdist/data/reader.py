"""Reads encoded samples by number: from a local file if there is one, otherwise by requests for their bytes."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.data.cache import CacheFullError, ShardCache
from unetdist.data.manifest import Manifest, Shard
from unetdist.data.open_shard import REMEDY, LocalShard, OpenShard, RangedShard, Rows, changed, check_size, read_rows
from unetdist.data.shards import checksum
from unetdist.errors import DataError, SourceError
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import RangesUnsupportedError

# Open shards per process, with two descriptors each. The order uses about two shards per lane at a time.
MAX_OPEN_SHARDS = 128

# Simultaneous requests of a process.
REQUESTS = 8

# Attempts to fetch a shard and open it: other processes may evict it in between.
FETCH_ATTEMPTS = 10

Encoded = tuple[bytes, bytes]
T = TypeVar("T")


class ShardReader:
    """Reads samples of a folder of shards by their global number; cheap to pickle and safe to fork.

    Shards of a local folder are read in place, remote shards from the `cache`. Until a shard is there (`Prefetcher`
    fetches what the order will need) each sample is one request. From a server that sends whole files only, the shard
    is fetched at the first sample.
    """

    def __init__(self, folder: str | Path | Folder, manifest: Manifest, *, cache: ShardCache | None = None) -> None:
        self.folder = open_folder(folder)
        self.manifest = manifest
        self.cache = cache
        self._ends = np.cumsum(manifest.shard_sizes)
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()  # for `_opened`; never held while a worker is forked

    def __reduce__(self) -> tuple[partial["ShardReader"], tuple[Folder, Manifest]]:
        return partial(ShardReader, cache=self.cache), (self.folder, self.manifest)  # without the open files

    def read(self, sample_id: int) -> Encoded:
        """Encoded image and mask; `DataError` if the shard is not the one that the manifest lists.

        A shard that is damaged in the cache is fetched again, once.
        """
        number, row = self._locate(sample_id)
        return self._use(number, lambda opened: self._sample(opened, sample_id, number, row))

    def _use(self, number: int, action: Callable[[OpenShard], T]) -> T:
        """Result of `action` for the open shard, which is fetched if its server sends whole files only."""
        for attempt in itertools.count(1):
            try:
                return action(self._open(number))
            except RangesUnsupportedError:
                if self.cache is None or attempt == FETCH_ATTEMPTS:
                    raise
                self.cache.fetch(self.folder, self.manifest.shards[number])
        raise AssertionError  # count() does not end

    def _sample(self, opened: OpenShard, sample_id: int, number: int, row: int) -> Encoded:
        """The sample, from a shard that is fetched again if it is damaged in the cache."""
        try:
            return self._verified(opened, sample_id, row)
        except SourceError:
            raise
        except DataError as error:
            if not isinstance(opened, LocalShard) or not opened.is_cached or self.cache is None:
                raise
            # Another thread or process may have replaced it already.
            if self.cache.drop(self.manifest.shards[number], is_it=opened.is_at):
                logger.warning("fetched again into the cache: %s", error)
            with suppress(CacheFullError):
                self.cache.fetch(self.folder, self.manifest.shards[number])
        with self._lock:
            if self._opened.get(number) is opened:
                del self._opened[number]
        return self._verified(self._open(number), sample_id, row)

    def read_many(self, sample_ids: Sequence[int]) -> list[Encoded | DataError]:
        """Like `read`, with simultaneous requests; a sample's error takes the sample's place.

        A `SourceError` is raised, since no sample is to blame.
        """
        numbers = {self._locate(sample_id)[0] for sample_id in sample_ids}
        # Threads are for requests only: reading a local file is faster than starting a thread.
        if all(map(self._is_at_hand, numbers)):
            return [_or_error(self.read, sample_id) for sample_id in sample_ids]
        # A pool for this call only: its threads would not survive a fork.
        with ThreadPoolExecutor(REQUESTS) as pool:
            # First each shard once, as threads that find one closed would all open it.
            list(pool.map(partial(_or_error, self._open), numbers))
            return list(pool.map(partial(_or_error, self.read), sample_ids))

    def key(self, sample_id: int) -> str:
        """The sample's key (its relative path without suffix), from its tar header. Slow; for messages."""
        number, row = self._locate(sample_id)
        return self._use(number, lambda opened: opened.key(row))

    def source(self, sample_id: int) -> str:
        """Shard and key of a sample, for messages; never raises, and asks no server."""
        number, row = self._locate(sample_id)
        where = mask(self.folder.where(self.manifest.shards[number].name))
        if self._is_at_hand(number):
            with suppress(DataError):
                return f"{where}/{self._open(number).key(row)}"
        return f"{where}, sample {row}"

    def checksums(self) -> Iterator[tuple[int, int, int]]:
        """(bytes of the image, bytes of the mask, checksum of both) of each sample, from the indexes."""
        for shard in self.manifest.shards:
            for _, _, image_size, _, mask_size, crc32 in self._rows(shard).tolist():
                yield image_size, mask_size, crc32

    def check(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Compare the sizes of this rank's part of the local shards, so that a lost file is found before the run."""
        for shard in self.manifest.shards[rank::world_size]:
            if self.folder.is_in_place(shard.name):
                check_size(self.folder.path(shard.name), shard)

    def _locate(self, sample_id: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, sample_id, side="right"))
        return number, int(sample_id - self._ends[number] + self.manifest.shards[number].num_samples)

    def _is_at_hand(self, number: int) -> bool:
        opened = self._opened.get(number)
        return isinstance(opened, LocalShard) if opened else self.folder.is_in_place(self.manifest.shards[number].name)

    def _open(self, number: int) -> OpenShard:
        """The shard, kept open. One that was read by requests is opened again once it is in the cache."""
        with self._lock:
            opened = self._opened.get(number)
            if opened is not None:
                self._opened.move_to_end(number)
        shard = self.manifest.shards[number]
        if opened is None or (isinstance(opened, RangedShard) and self.cache and self.cache.find(shard)):
            opened = self._open_again(shard)
            with self._lock:
                self._opened[number] = opened
                if len(self._opened) > MAX_OPEN_SHARDS:
                    self._opened.popitem(last=False)
        return opened

    def _open_again(self, shard: Shard) -> OpenShard:
        load_rows = partial(self._rows, shard)
        if self.folder.is_in_place(shard.name):
            return LocalShard(self.folder.path(shard.name), shard, load_rows)
        # Another process may evict a shard before it is opened.
        while self.cache is not None and (path := self.cache.find(shard)):
            with suppress(FileNotFoundError):
                return LocalShard(path, shard, load_rows, is_cached=True)
        return RangedShard(self.folder, shard, load_rows)

    def _rows(self, shard: Shard) -> Rows:
        if self.cache is not None and not self.folder.is_local:
            return self.cache.index(self.folder, shard)
        return read_rows(self.folder, shard)

    def _verified(self, opened: OpenShard, sample_id: int, row: int) -> Encoded:
        image, mask_ = opened.sample(row)
        found, expected = checksum(image, mask_), int(opened.rows[row, -1])
        if found == expected:
            return image, mask_
        source = self.source(sample_id)
        if isinstance(opened, RangedShard):
            raise changed(source, f"crc32 {found:08x}", f"{expected:08x}")
        raise DataError(f"damaged: its bytes are not those that were written; {REMEDY}", source=source)


def _or_error(action: Callable[[int], T], number: int) -> T | DataError:
    try:
        return action(number)
    except SourceError:
        raise
    except DataError as error:
        return error
