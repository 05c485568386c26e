"""One shard that samples are read from: a file, or a file behind a URL of which only parts are asked for."""

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
from unetdist.storage.files import open_file
from unetdist.storage.folders import Folder

Rows = npt.NDArray[np.int64]

_MAGIC = b"\x93NUMPY"

REMEDY = "copy the data set again, or run the command that wrote it: it keeps what is complete."


class LocalShard:
    """A file descriptor, which closes when the object goes, and the rows of the index."""

    is_local = True

    def __init__(
        self, path: Path, shard: Shard, load_rows: Callable[[], Rows], *, is_cached: bool = False
    ) -> None:
        self.path = path
        self._num_bytes = shard.num_bytes
        self.is_cached = is_cached
        if not is_cached:
            check_size(path, shard)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise SourceError(f"cannot be opened ({error.strerror}); {REMEDY}", source=path) from None
        weakref.finalize(self, os.close, self._descriptor)
        self.rows = load_rows()

    def sample(self, row: int) -> tuple[bytes, bytes]:
        """Encoded image and mask."""
        _, image_offset, image_size, mask_offset, mask_size, _ = self.rows[row].tolist()
        for offset, size in ((image_offset, image_size), (mask_offset, mask_size)):
            _check_place(offset, size, self._num_bytes, self.path)
        return self._read(image_offset, image_size), self._read(mask_offset, mask_size)

    def key(self, row: int) -> str:
        """From the header of the sample's first member."""
        start, size = _header(self.rows[row], self._num_bytes)
        return _key(os.pread(self._descriptor, size, start), row, self.path)

    def is_at(self, path: Path) -> bool:
        """Whether the open file is still the one that has this name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def _read(self, offset: int, size: int) -> bytes:
        # pread has no position, so processes that share a descriptor after a fork do not disturb each other.
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror}); {REMEDY}", source=self.path) from None
        return _complete(data, offset, size, self.path)


class RangedShard:
    """A shard behind a URL; each sample is one request."""

    is_local = False
    is_cached = False

    def __init__(self, folder: Folder, shard: Shard, load_rows: Callable[[], Rows]) -> None:
        self._folder = folder
        self._num_bytes = shard.num_bytes
        self._name = shard.name
        self._where = mask(folder.where(shard.name))
        try:
            size = folder.size(shard.name)
        except FileNotFoundError:
            raise DataError(f"is not there; {REMEDY}", source=self._where) from None
        if size not in (None, shard.num_bytes):
            raise changed(self._where, f"{size} bytes", f"{shard.num_bytes}")
        self.rows = load_rows()

    def sample(self, row: int) -> tuple[bytes, bytes]:
        """Encoded image and mask."""
        _, image_offset, image_size, mask_offset, mask_size, _ = self.rows[row].tolist()
        for offset, size in ((image_offset, image_size), (mask_offset, mask_size)):
            _check_place(offset, size, self._num_bytes, self._where)
        start = min(image_offset, mask_offset)
        size = max(image_offset + image_size, mask_offset + mask_size) - start
        data = _complete(self._read(start, size), start, size, self._where)
        image, mask_ = image_offset - start, mask_offset - start
        return data[image : image + image_size], data[mask_ : mask_ + mask_size]

    def key(self, row: int) -> str:
        """From the header of the sample's first member: another request."""
        return _key(self._read(*_header(self.rows[row], self._num_bytes)), row, self._where)

    def _read(self, start: int, size: int) -> bytes:
        try:
            return self._folder.read_range(self._name, start, size)
        except FileNotFoundError:
            raise DataError(f"is not there any more; {REMEDY}", source=self._where) from None


def check_size(path: Path, shard: Shard) -> None:
    """`DataError` unless the local file has as many bytes as the manifest says."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror}); {REMEDY}", source=path) from None
    if size != shard.num_bytes:
        raise DataError(f"has {size} bytes, the manifest says {shard.num_bytes}; {REMEDY}", source=path)


def read_rows(file: Path | io.BytesIO, shard: Shard, source: object) -> Rows:
    """The rows of an index, memory-mapped where it is a path; `DataError` where it is not that of the manifest."""
    try:
        if shard.index_sha256 and _sha256(file) != shard.index_sha256:
            raise DataError(f"is not the index that the manifest lists; {REMEDY}", source=source)
        # asarray: rows of a memmap object are ten times slower to take than rows of a plain view of it.
        rows = np.asarray(_load(file))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}); {REMEDY}", source=source) from None
    except Exception as error:  # numpy evaluates the header, with all that may come of it
        raise DataError(f"is damaged ({error}); {REMEDY}", source=source) from None
    if rows.shape != (shard.num_samples, len(INDEX_COLUMNS)) or rows.dtype != np.int64:
        expected = (shard.num_samples, len(INDEX_COLUMNS))
        raise DataError(f"is {rows.dtype} {rows.shape}, expected int64 {expected}; {REMEDY}", source=source)
    return rows


def _load(file: Path | io.BytesIO) -> object:
    if isinstance(file, io.BytesIO):
        start = file.getvalue()[: len(_MAGIC)]
    else:
        with open_file(file) as opened:  # numpy would wait for the writer of a named pipe
            start = opened.read(len(_MAGIC))
    if start != _MAGIC:
        raise ValueError("it is no array of numpy")  # which numpy would advise to load unsafely
    return np.load(file, mmap_mode=None if isinstance(file, io.BytesIO) else "r")


def _sha256(file: Path | io.BytesIO) -> str:
    if isinstance(file, io.BytesIO):
        return hashlib.sha256(file.getbuffer()).hexdigest()
    with open_file(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def changed(where: str, found: str, listed: str) -> DataError:
    """What to say of a shard on a server that is not the one that was written."""
    return DataError(
        f"the server's file is not the one that the manifest lists: {found} found, {listed} expected; upload the "
        "shard that was written again, or write the whole data set again, to an empty folder.",
        source=where,
    )


def _check_place(offset: int, size: int, num_bytes: int, source: object) -> None:
    """Before anything is read: an index that was forged may ask for more than the memory holds."""
    if not 0 <= offset <= offset + size <= num_bytes:
        raise _not_there(offset, size, max(0, min(size, num_bytes - offset)), source)


def _complete(data: bytes, offset: int, size: int, source: object) -> bytes:
    if len(data) != size:
        raise _not_there(offset, size, len(data), source)
    return data


def _not_there(offset: int, size: int, found: int, source: object) -> DataError:
    return DataError(
        f"{size} bytes wanted at {offset}, {found} found: the index does not belong to the shard; {REMEDY}",
        source=source,
    )


def _header(row: Rows, num_bytes: int) -> tuple[int, int]:
    """Begin and size of what lies before a sample's first bytes: its header, and the records of a long name."""
    header_offset, image_offset, _, mask_offset, _, _ = row.tolist()
    size = min(image_offset, mask_offset) - header_offset
    return (header_offset, size) if 0 <= header_offset <= header_offset + size <= num_bytes else (0, 0)


def _key(header: bytes, row: int, source: object) -> str:
    try:
        return key_at(io.BytesIO(header), source)
    except DataError:
        raise DataError(f"no member at the offset of sample {row}; {REMEDY}", source=source) from None
