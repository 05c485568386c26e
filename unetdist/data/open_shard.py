"""One open shard: a local file, or a file behind a URL that is read in parts."""

import hashlib
import io
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetdist.cli.credentials import mask
from unetdist.data.manifest import Shard
from unetdist.data.shards import INDEX_COLUMNS
from unetdist.data.tar_index import key_at
from unetdist.errors import DataError, SourceError
from unetdist.storage.folders import Folder

Rows = npt.NDArray[np.int64]

_MAGIC = b"\x93NUMPY"

REMEDY = "copy the data set again, or run the command that wrote it: it keeps what is complete."


class OpenShard:
    """The rows of a shard's index, and the bytes that they point at."""

    def __init__(self, where: object, num_bytes: int, rows: Rows) -> None:
        self._where = where
        self._num_bytes = num_bytes
        self.rows = rows

    def sample(self, row: int) -> tuple[bytes, bytes]:
        """Encoded image and mask."""
        # One conversion: taking the numbers one by one from numpy is slower.
        _, image_offset, image_size, mask_offset, mask_size, _ = self.rows[row].tolist()
        return self._read_pair((image_offset, image_size), (mask_offset, mask_size))

    def key(self, row: int) -> str:
        """The sample's key, from the header of its first member."""
        start, image, _, mask_, _, _ = self.rows[row].tolist()
        size = min(image, mask_) - start  # the header, and the records of a long name
        try:
            return key_at(io.BytesIO(self._read(start, size)), self._where)
        except SourceError:
            raise
        except DataError:
            raise DataError(f"no member at the offset of sample {row}; {REMEDY}", source=self._where) from None

    def _read_pair(self, image: tuple[int, int], mask_: tuple[int, int]) -> tuple[bytes, bytes]:
        return self._read(*image), self._read(*mask_)

    def _read(self, offset: int, size: int) -> bytes:
        # A forged index may ask for more than the memory holds.
        is_inside = 0 <= offset <= offset + size <= self._num_bytes
        data = self._bytes(offset, size) if is_inside else b""
        if not is_inside or len(data) != size:
            raise DataError(
                f"{size} bytes wanted at {offset}, {len(data)} found: the index does not belong to the shard; {REMEDY}",
                source=self._where,
            )
        return data

    def _bytes(self, offset: int, size: int) -> bytes:
        raise NotImplementedError


class LocalShard(OpenShard):
    """A local file, open until this object is freed."""

    def __init__(self, path: Path, shard: Shard, load_rows: Callable[[], Rows], *, is_cached: bool = False) -> None:
        self.path = path
        self.is_cached = is_cached
        # The cache has checked the size.
        if not is_cached:
            check_size(path, shard)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise SourceError(f"cannot be opened ({error.strerror}); {REMEDY}", source=path) from None
        weakref.finalize(self, os.close, self._descriptor)
        super().__init__(path, shard.num_bytes, load_rows())

    def is_at(self, path: Path) -> bool:
        """Whether `path` still names the open file."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def _bytes(self, offset: int, size: int) -> bytes:
        # pread has no position, so that processes which share a descriptor after a fork do not disturb each other.
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}); {REMEDY}", source=self.path) from None


class RangedShard(OpenShard):
    """A shard behind a URL. Each sample takes one request, and each key another."""

    def __init__(self, folder: Folder, shard: Shard, load_rows: Callable[[], Rows]) -> None:
        self._folder = folder
        self._name = shard.name
        super().__init__(mask(folder.where(shard.name)), shard.num_bytes, load_rows())

    def _read_pair(self, image: tuple[int, int], mask_: tuple[int, int]) -> tuple[bytes, bytes]:
        start = min(image[0], mask_[0])
        data = self._read(start, max(sum(image), sum(mask_)) - start)
        parts = [data[offset - start : offset - start + size] for offset, size in (image, mask_)]
        return parts[0], parts[1]

    def _bytes(self, offset: int, size: int) -> bytes:
        try:
            return self._folder.read_range(self._name, offset, size)
        except FileNotFoundError:
            raise DataError(f"is not there; {REMEDY}", source=self._where) from None


def check_size(path: Path, shard: Shard) -> None:
    """Raise `DataError` unless the local file is as large as the manifest says."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror}); {REMEDY}", source=path) from None
    if size != shard.num_bytes:
        raise DataError(f"has {size} bytes, the manifest says {shard.num_bytes}; {REMEDY}", source=path)


def read_index(folder: Folder, shard: Shard) -> bytes:
    """The file of a shard's index."""
    # Read whole, not memory-mapped: the hash needs all of it, and a file that is cut short later would kill the
    # process (SIGBUS). 10,000 samples take 480 KB.
    try:
        return folder.read(shard.index_name)
    except OSError as error:
        where = mask(folder.where(shard.index_name))
        raise DataError(f"cannot be read ({error.strerror or error}); {REMEDY}", source=where) from None


def read_rows(folder: Folder, shard: Shard) -> Rows:
    """The rows of a shard's index; `DataError` if it is not the manifest's."""
    return parse_rows(read_index(folder, shard), shard, mask(folder.where(shard.index_name)))


def parse_rows(data: bytes, shard: Shard, source: object) -> Rows:
    """The rows of an index from its file; `DataError` if it is not the manifest's."""
    try:
        if shard.index_sha256 and hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DataError(f"is not the index that the manifest lists; {REMEDY}", source=source)
        if not data.startswith(_MAGIC):  # numpy would advise to load it unsafely
            raise ValueError("it is not an array of numpy")
        rows: np.ndarray = np.load(io.BytesIO(data))
    except DataError:
        raise
    except Exception as error:  # numpy evaluates the header, which may raise anything
        raise DataError(f"is damaged ({error}); {REMEDY}", source=source) from None
    expected = (shard.num_samples, len(INDEX_COLUMNS))
    if rows.shape != expected or rows.dtype != np.int64:
        raise DataError(f"is {rows.dtype} {rows.shape}, expected int64 {expected}; {REMEDY}", source=source)
    return rows


def changed(where: str, found: str, listed: str) -> DataError:
    """The error for a shard on a server that is not the one that was written."""
    return DataError(
        f"the server's file is not the one that the manifest lists: {found} found, {listed} expected; upload the "
        "shard that was written again, or write the whole data set again, to an empty folder.",
        source=where,
    )
