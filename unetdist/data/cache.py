"""LRU disk cache of remote shards, shared by all processes of a node."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from unetdist.cli.credentials import mask
from unetdist.data.manifest import Shard
from unetdist.data.open_shard import REMEDY, Rows, changed, parse_rows, read_index
from unetdist.errors import ConfigError, DataError, SourceError
from unetdist.storage.files import read_file, sync_folder
from unetdist.storage.folders import Folder

TAR, INDEX, PARTIAL = ".tar", ".idx", ".partial"

# Names of the cache's own files. Others in its folder are left alone.
_ENTRY = re.compile(r"[0-9a-f]{64}\.(tar|idx)(\.partial)?")


class CacheFullError(SourceError):
    """The cache has no room for a shard."""


@dataclass(frozen=True)
class ShardCache:
    """A folder that any number of processes and runs may share.

    An entry is named by the shard's sha256 in the manifest: the same shard from two places is one entry, and two
    versions of a shard are two. An entry appears whole and verified. Readers may keep it open while it is evicted.
    """

    directory: Path
    limit_bytes: int

    def __post_init__(self) -> None:
        try:
            (self.directory / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the cache {self.directory} cannot be made ({error.strerror}); give a folder on a local disk."
            ) from None
        self.remove_leftovers()

    def find(self, shard: Shard) -> Path | None:
        """The shard's file if it is here, now marked as used; it may be evicted before it is opened."""
        path = self._path(shard, TAR)
        with suppress(FileNotFoundError):
            if path.stat().st_size == shard.num_bytes:
                _touch(path)
                return path
        return None

    def fetch(self, folder: Folder, shard: Shard) -> Path:
        """The shard's file, downloaded unless it is here. Waits for another process that is downloading it.

        Raises:
            DataError: The file is missing or not the one that the manifest lists.
            UnreachableError: The server does not answer.
            CacheFullError: There is no room.
        """
        with self._lock(self._path(shard, TAR)):
            # Another process may have stored it while this one waited for the lock.
            if found := self.find(shard):
                return found
            return self._store(shard, TAR, shard.num_bytes, lambda file: _receive(folder, shard, file))

    def index(self, folder: Folder, shard: Shard) -> Rows:
        """The rows of the shard's index, downloaded unless they are here. Never waits for the download of a shard."""
        path = self._path(shard, INDEX)
        with suppress(DataError, OSError):  # damaged, or absent
            return self._kept_rows(path, shard)
        with self._lock(path):
            with suppress(DataError, OSError):
                return self._kept_rows(path, shard)
            data = read_index(folder, shard)
            rows = parse_rows(data, shard, mask(folder.where(shard.index_name)))
            with suppress(CacheFullError):
                self._store(shard, INDEX, len(data), lambda file: file.write(data))
            return rows

    def _kept_rows(self, path: Path, shard: Shard) -> Rows:
        rows = parse_rows(read_file(path), shard, path)
        _touch(path)
        return rows

    def drop(self, shard: Shard, *, is_it: Callable[[Path], bool]) -> bool:
        """Remove a damaged shard if `is_it` confirms its file (others may have replaced it); returns whether it did."""
        with self._lock(self._path(shard, TAR)):
            found = is_it(self._path(shard, TAR))
            for kind in (TAR, INDEX) if found else ():
                self._path(shard, kind).unlink(missing_ok=True)
        return found

    def _path(self, shard: Shard, kind: str) -> Path:
        # An index has its own hash: the same tar may be indexed with other masks.
        name = (kind == INDEX and shard.index_sha256) or shard.sha256
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise DataError(f"sha256 is {name!r} in the manifest; {REMEDY}", source=shard.name)
        return self.directory / (name + kind)

    @contextmanager
    def _lock(self, path: Path, timeout: float = -1) -> Iterator[None]:
        """Hold the lock for making an entry; entries whose hashes begin alike share one."""
        kind = INDEX if INDEX in path.name else TAR
        # 256 files per kind, not one per entry, because lock files are never removed.
        lock = FileLock(self.directory / "locks" / (path.name[:2] + kind), timeout=timeout, mode=0o666)
        try:
            lock.acquire()
        except Timeout:
            raise
        except OSError as error:
            raise CacheFullError(
                f"the cache {self.directory} cannot be locked ({error.strerror}); free space on its disk, or give a "
                "folder that you may write to."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _store(self, shard: Shard, kind: str, num_bytes: int, write: Callable[[IO[bytes]], object]) -> Path:
        if num_bytes > self.limit_bytes:
            raise CacheFullError(
                f"{num_bytes} bytes do not fit into the cache {self.directory}, whose limit is {self.limit_bytes}; "
                "raise the limit above a few times the size of a shard.",
                source=shard.name,
            )
        path = self._path(shard, kind)
        partial = path.with_name(path.name + PARTIAL)
        try:
            with open(partial, "w+b") as file:
                with FileLock(self.directory / "locks" / "room"):
                    self._make_room(num_bytes)
                    file.truncate(num_bytes)  # other processes count it as taken
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            raise CacheFullError(
                f"cannot be kept in the cache {self.directory} ({error.strerror}); free {num_bytes} bytes on its "
                "disk, or give another folder.",
                source=shard.name,
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(self.directory)
        return path

    def _make_room(self, num_bytes: int) -> None:
        """Evict the least recently used entries until `num_bytes` fit into the limit.

        Running downloads count but stay, so that the limit may be exceeded by their size.
        """
        entries = []
        for path in self.directory.iterdir():
            with suppress(FileNotFoundError):
                if _ENTRY.fullmatch(path.name):
                    status = path.stat()
                    # The time of change, set by `_touch`: many disks do not record the time of reading.
                    entries.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in entries) + num_bytes - self.limit_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path.suffix != PARTIAL:
                path.unlink(missing_ok=True)
                excess -= size

    def remove_leftovers(self) -> None:
        """Remove the half-written entries of killed processes, whose locks nobody holds."""
        for partial in self.directory.glob(f"*{PARTIAL}"):
            if _ENTRY.fullmatch(partial.name):
                with suppress(Timeout, DataError), self._lock(partial, timeout=0):
                    partial.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    """Mark an entry as used."""
    with suppress(FileNotFoundError, PermissionError):  # evicted meanwhile, or another user's
        os.utime(path)


def _receive(folder: Folder, shard: Shard, file: IO[bytes]) -> None:
    """Download a shard and compare it with the manifest."""
    where = mask(folder.where(shard.name))
    for _ in range(2):  # bytes may be damaged on the way
        try:
            folder.download(shard.name, file, most=shard.num_bytes + 1)
        except FileNotFoundError:
            raise DataError(f"is not there; {REMEDY}", source=where) from None
        size = file.tell()
        if size > shard.num_bytes:
            raise changed(where, f"more than {shard.num_bytes} bytes", f"{shard.num_bytes}")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if size == shard.num_bytes and sha256 == shard.sha256:
            return
    expected = f"{shard.num_bytes} bytes with sha256 {shard.sha256}"
    raise changed(where, f"{size} bytes with sha256 {sha256}", expected)
