"""Sample id to encoded bytes: one positioned read per member, at the offsets of the shard's index."""

import os
import tarfile
import weakref
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from unetdist.data.manifest import Manifest, Shard
from unetdist.data.shards import INDEX_COLUMNS, checksum, index_path, load_index, unescape_key
from unetdist.errors import DataError

MAX_OPEN_SHARDS = 128
"""Per process, two descriptors each; the order has about two shards per lane in use at a time."""


class ShardReader:
    """Reads samples of a folder of shards by their global number; cheap to pickle and safe to fork."""

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        self._ends = np.cumsum(manifest.shard_sizes)
        # Over a plain function, not a method: a cycle would keep files open until the garbage collector comes.
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS)(partial(_open_shard, self.folder, manifest.shards))

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Path, Manifest]]:
        return ShardReader, (self.folder, self.manifest)  # Without the open files.

    def read(self, sample_id: int) -> tuple[bytes, bytes]:
        """Encoded image and mask; `DataError` where the shard is not the one that the manifest lists."""
        shard, row = self._locate(sample_id)
        opened = self._open(shard)
        _, image_offset, image_size, mask_offset, mask_size, crc32 = opened.rows[row].tolist()
        image, mask = opened.read(image_offset, image_size), opened.read(mask_offset, mask_size)
        if checksum(image, mask) != crc32:
            raise DataError(
                f"damaged: its bytes are not those that were written; {_REMEDY}",
                source=self.source(sample_id),
            )
        return image, mask

    def key(self, sample_id: int) -> str:
        """The sample's key (its relative path without suffix), from its tar header: slow, for messages."""
        shard, row = self._locate(sample_id)
        return self._open(shard).key(row)

    def source(self, sample_id: int) -> str:
        """Shard and key of a sample, for messages; never raises."""
        shard, row = self._locate(sample_id)
        path = self.folder / self.manifest.shards[shard].name
        try:
            return f"{path}/{self._open(shard).key(row)}"
        except (DataError, OSError, tarfile.TarError):
            return f"{path}, sample {row}"

    def check(self, *, rank: int = 0, world_size: int = 1) -> None:
        """Compare the sizes of this rank's share of the shards: a lost file is found before the run."""
        for shard in self.manifest.shards[rank::world_size]:
            _check_size(self.folder / shard.name, shard)

    def _locate(self, sample_id: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, int(sample_id - self._ends[shard] + self.manifest.shards[shard].num_samples)


class _OpenShard:
    """A file descriptor, which closes when the object goes, and the rows of the index."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        _check_size(path, shard)
        self.rows = _load_rows(path, shard)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        # pread has no position, so processes that share a descriptor after a fork do not disturb each other.
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}); {_REMEDY}", source=self.path) from None
        if len(data) != size:
            raise DataError(
                f"{size} bytes wanted at {offset}, {len(data)} found: the index does not belong to the "
                f"shard; {_REMEDY}",
                source=self.path,
            )
        return data

    def key(self, row: int) -> str:
        # tarfile and not the 100 bytes of the header: a long name lies in records before the header.
        with open(self.path, "rb") as file:
            file.seek(int(self.rows[row][0]))
            with tarfile.open(fileobj=file, mode="r:") as tar:
                member = tar.next()
        if member is None:
            raise DataError(f"no member at the offset of sample {row}; {_REMEDY}", source=self.path)
        name = PurePosixPath(member.name)
        return unescape_key(str(name.with_name(name.name.split(".")[0])))


def _open_shard(folder: Path, shards: tuple[Shard, ...], number: int) -> _OpenShard:
    return _OpenShard(folder / shards[number].name, shards[number])


def _check_size(path: Path, shard: Shard) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror}); {_REMEDY}", source=path) from None
    if size != shard.num_bytes:
        raise DataError(f"has {size} bytes, the manifest says {shard.num_bytes}; {_REMEDY}", source=path)


def _load_rows(path: Path, shard: Shard) -> npt.NDArray[np.int64]:
    try:
        # asarray: rows of a memmap object are ten times slower to take than rows of a plain view of it.
        rows = np.asarray(load_index(path))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read ({error}); {_REMEDY}", source=index_path(path)) from None
    if rows.shape != (shard.num_samples, len(INDEX_COLUMNS)) or rows.dtype != np.int64:
        raise DataError(
            f"is {rows.dtype} {rows.shape}, expected int64 {(shard.num_samples, len(INDEX_COLUMNS))}; {_REMEDY}",
            source=index_path(path),
        )
    return rows


_REMEDY = "copy the data set again, or run the command that wrote it: it keeps what is complete."
