"""Shards of other machines as local files: fetched once per node, verified, the least recently used out."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from unetdist.cli.credentials import mask
from unetdist.data.manifest import Shard
from unetdist.data.open_shard import REMEDY, Rows, changed, read_rows
from unetdist.errors import ConfigError, DataError, SourceError
from unetdist.storage.files import sync_folder
from unetdist.storage.folders import Folder

TAR, INDEX, PARTIAL = ".tar", ".idx", ".partial"

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

_ENTRY = re.compile(r"[0-9a-f]{64}\.(tar|idx)(\.partial)?")
"""Names of the cache's files: its folder may hold others, which it leaves alone."""


class CacheFullError(SourceError):
    """No room for a shard."""


@dataclass(frozen=True)
class ShardCache:
    """A folder that any number of processes and runs may share.

    An entry is named by the sha256 that the manifest gives the shard, so that it is the same wherever the shard came
    from, and never another. It appears whole and verified. Readers may keep an entry open while it is evicted.
    """

    directory: Path
    limit_bytes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        try:
            (self.directory / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the cache {self.directory} cannot be made ({error.strerror}); give another folder, on a local disk."
            ) from None
        self.remove_leftovers()

    def find(self, shard: Shard) -> Path | None:
        """The shard's file if it is here, which then counts as used; it may be gone by the time it is opened."""
        path = self._path(shard, TAR)
        with suppress(FileNotFoundError):
            if path.stat().st_size == shard.num_bytes:
                _touch(path)
                return path
        return None

    def fetch(self, folder: Folder, shard: Shard) -> Path:
        """The shard's file, downloaded unless it is here; another process that downloads it is waited for.

        `DataError` where the file is not there or not the one that the manifest lists, `UnreachableError` where the
        server does not answer, `CacheFullError` where there is no room.
        """
        with self._lock(self._path(shard, TAR)):
            if found := self.find(shard):
                return found
            return self._store(shard, TAR, shard.num_bytes, lambda file: _receive(folder, shard, file))

    def index(self, folder: Folder, shard: Shard) -> Rows:
        """The rows of the shard's index, downloaded unless it is here; no download of a shard is waited for."""
        path = self._path(shard, INDEX)
        with suppress(FileNotFoundError, DataError):
            return self._rows_here(path, shard)
        with self._lock(path):
            with suppress(FileNotFoundError, DataError):
                return self._rows_here(path, shard)
            data = read_index(folder, shard)
            rows = read_rows(BytesIO(data), shard, mask(folder.where(shard.index_name)))
            with suppress(CacheFullError):
                self._store(shard, INDEX, len(data), lambda file: file.write(data))
            return rows

    def drop(self, shard: Shard, *, is_it: Callable[[Path], bool] = lambda _: True) -> bool:
        """Remove a damaged shard, if `is_it` knows its tar again; whether it did: others may have been faster."""
        with self._lock(self._path(shard, TAR)):
            found = is_it(self._path(shard, TAR))
            for kind in (TAR, INDEX) if found else ():
                self._path(shard, kind).unlink(missing_ok=True)
        return found

    def _rows_here(self, path: Path, shard: Shard) -> Rows:
        path.stat()
        _touch(path)
        return read_rows(path, shard, path)

    def _path(self, shard: Shard, kind: str) -> Path:
        """An index has a hash of its own: the same tar may be indexed with other masks."""
        name = (kind == INDEX and shard.index_sha256) or shard.sha256
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise DataError(f"sha256 is {name!r} in the manifest; {REMEDY}", source=shard.name)
        return self.directory / (name + kind)

    @contextmanager
    def _lock(self, path: Path, timeout: float = -1) -> Iterator[None]:
        """Held while an entry is made; ends with its process. Few files, each for many entries of a kind."""
        kind = INDEX if INDEX in path.name else TAR
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
            try:
                self._write(partial, num_bytes, write)
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                # Others filled the disk: give up what was used longest ago, and try again once.
                self._write(partial, num_bytes, write, is_disk_full=True)
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

    def _write(
        self,
        partial: Path,
        num_bytes: int,
        write: Callable[[IO[bytes]], object],
        *,
        is_disk_full: bool = False,
    ) -> None:
        with open(partial, "wb") as file:
            with FileLock(self.directory / "locks" / "room"):
                self._make_room(num_bytes, at_least=num_bytes if is_disk_full else 0)
                file.truncate(num_bytes)  # Others count it as taken.
            write(file)
            file.flush()
            os.fsync(file.fileno())

    def _make_room(self, num_bytes: int, *, at_least: int) -> None:
        """Remove entries until `num_bytes` more are within the limit, and `at_least` so many bytes of them.

        What others are downloading is counted, but stays: the limit may be passed by that much.
        """
        entries = self._entries()
        excess = max(sum(size for _, size, _ in entries) + num_bytes - self.limit_bytes, at_least)
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path.suffix != PARTIAL:
                path.unlink(missing_ok=True)
                excess -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every file of the cache; others in its folder are not ours."""
        entries = []
        with os.scandir(self.directory) as found:
            for entry in found:
                with suppress(FileNotFoundError):
                    if _ENTRY.fullmatch(entry.name) and entry.is_file():
                        status = entry.stat()
                        entries.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        return entries

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half-written: nobody holds its lock."""
        for partial in self.directory.glob(f"*{PARTIAL}"):
            if _ENTRY.fullmatch(partial.name):
                with suppress(Timeout, DataError), self._lock(partial, timeout=0):
                    partial.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    """Count an entry as used."""
    with suppress(FileNotFoundError, PermissionError):  # Gone meanwhile, or another user's.
        os.utime(path)


def read_index(folder: Folder, shard: Shard) -> bytes:
    """The index of a shard as its file holds it."""
    try:
        return folder.read(shard.index_name)
    except FileNotFoundError:
        where = mask(folder.where(shard.index_name))
        raise DataError(f"cannot be read (No such file); {REMEDY}", source=where) from None


def _receive(folder: Folder, shard: Shard, file: IO[bytes]) -> None:
    """Download a shard and compare it with the manifest, twice if need be: bytes may be damaged on the way."""
    where = mask(folder.where(shard.name))
    for _ in range(2):
        received = _Received(shard.num_bytes)
        file.seek(0)
        try:
            folder.download(shard.name, file, on_bytes=received.add)
        except FileNotFoundError:
            raise DataError(f"is not there; {REMEDY}", source=where) from None
        except _TooLongError:
            raise changed(where, f"more than {shard.num_bytes} bytes", f"{shard.num_bytes}") from None
        if received.num_bytes == shard.num_bytes and received.sha256.hexdigest() == shard.sha256:
            return
    raise changed(
        where,
        f"{received.num_bytes} bytes with sha256 {received.sha256.hexdigest()}",
        f"{shard.num_bytes} bytes with sha256 {shard.sha256}",
    )


class _TooLongError(Exception):
    """More came than the manifest says."""


class _Received:
    """Size and hash of what came so far."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        if self.num_bytes > self.most:
            raise _TooLongError
        self.sha256.update(piece)
