"""Index and manifest for WebDataset tars that others wrote, wherever they are; the tars stay as they are."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetdist.cli.credentials import mask
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.image_file import (
    HIGH_BYTE,
    Drawn,
    OpenedImage,
    eight_bit,
    extremes_of_deep,
    is_to_be_turned,
    open_image,
)
from unetdist.data.labels import Palette
from unetdist.data.manifest import Shard
from unetdist.data.shards import encode_index, sha256_of
from unetdist.data.tar_index import MemberNames, index_tar, read_key
from unetdist.errors import DataError
from unetdist.sharding.convert import POLICY, Converter, ConvertOptions
from unetdist.sharding.first_look import NUM_SAMPLES, look
from unetdist.sharding.pictures import Picture
from unetdist.sharding.records import Finished, has_index, has_size
from unetdist.sharding.sources import Problem, Sample
from unetdist.sharding.statistics import Statistics
from unetdist.storage.files import open_file
from unetdist.storage.folders import Folder
from unetdist.storage.remote import is_url

BAD_TAR = "bad tar"
"""Kind of `Problem`."""

_GREY_PNG = b"\x89PNG\r\n\x1a\n", b"\x08\x00"
"""How it begins, and its bits and colour type."""


@dataclass(frozen=True)
class TarJob:
    """One tar to be indexed, its samples to be looked at."""

    folder: Folder
    """Of index, records and manifest."""
    number: int
    source: Folder
    """Of the tar."""
    name: str
    """Of the tar in `source`."""
    shard_name: str
    """As the manifest is to name it: seen from `folder`."""
    names: MemberNames
    palette: Palette
    options: ConvertOptions

    @property
    def num_samples(self) -> int:
        """What progress counts: tars."""
        return 1

    @property
    def fingerprint(self) -> str:
        """Of the tar (where it is local: its size and time too), its labels, and how its masks are named and read."""
        tar = [self.shard_name, _stamp(self.source, self.name), asdict(self.names)]
        return hashlib.sha256(
            json.dumps([tar, self.palette.to_records(), self.options.deciding()]).encode()
        ).hexdigest()

    @property
    def policy(self) -> Sequence[Any]:
        """What matters only if something is bad."""
        return [getattr(self.options, name) for name in POLICY]

    def has_sizes(self, shard: Shard) -> bool:
        """Whether tar and index are there, by their sizes."""
        return has_size(self.source, self.name, shard.num_bytes) and has_index(self.folder, shard)

    def is_whole(self, shard: Shard) -> bool:
        """Whether the index is there and the tar the same: a local tar by its size (the fingerprint holds its time)."""
        if not self.has_sizes(shard):
            return False
        if _is_local(self.source, self.name):
            return True
        try:
            with self._tar() as path, open_file(path) as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except _BadTarError:
            return False

    def make(self) -> Finished:
        """Index the tar, unless one of its samples is bad."""
        where = mask(self.source.where(self.name))
        try:
            with self._tar() as path:
                return self._index(path)
        except _BadTarError as error:
            problem = Problem(BAD_TAR, where, str(error))
            return Finished(self.number, 0, None, Statistics(), (problem,), (), has_index_masks=False)

    def look(self) -> None:
        """Look at a few samples of a local tar before all are read, as `first_look.look` does."""
        if not _is_local(self.source, self.name):
            return
        path = self.source.path(self.name)
        try:
            index = index_tar(path, self.names)
        except (DataError, OSError):
            return  # told when the tar is indexed
        rows = range(0, len(index), max(1, len(index) // NUM_SAMPLES))
        samples = [_sample(path, path, row, int(index[row, 0])) for row in rows]
        look(_TarReader(path, index), samples, self.palette, self.options)

    @contextmanager
    def _tar(self) -> Iterator[Path]:
        """The tar as a local file."""
        if _is_local(self.source, self.name):
            yield self.source.path(self.name)
            return
        with tempfile.TemporaryDirectory(prefix="unetdist-") as folder:
            path = Path(folder) / "tar"
            with open(path, "wb") as file:
                try:
                    self.source.download(self.name, file)
                except FileNotFoundError:
                    raise _BadTarError("no such file") from None
            yield path

    def _index(self, path: Path) -> Finished:
        try:
            index = index_tar(path, self.names, source=mask(self.source.where(self.name)))
            with open_file(path) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                num_bytes = file.tell()
        except DataError as error:
            raise _BadTarError(str(error).removeprefix(f"{error.source}: ")) from None
        except OSError as error:
            raise _BadTarError(f"cannot be read: {error.strerror or error}") from None
        as_it_is = partial(_as_it_is, exif=self.options.exif)
        converter = Converter(_TarReader(path, index), self.palette, self.options, as_it_is)
        has_index_masks = True
        for row, header_offset in enumerate(index[:, 0].tolist()):
            good = converter.convert(_sample(path, mask(self.source.where(self.name)), row, header_offset))
            has_index_masks &= good is not None and _is_index_mask(good.mask_file, good.mask)
        shard = None
        if not converter.problems:
            shard = Shard(self.shard_name, len(index), num_bytes, sha256, sha256_of(index))
            self.folder.write(shard.index_name, encode_index(index))
        problems, found = tuple(converter.problems), tuple(converter.found)
        return Finished(
            self.number,
            len(index),
            shard,
            converter.statistics,
            problems,
            found,
            has_index_masks,
            notes=converter.notes,
        )


def _sample(path: Path, told: object, row: int, header_offset: int) -> Sample:
    """Sample `row` of the tar at `path`, which messages are to name as `told`."""
    name = f"{told}, key {read_key(path, header_offset)}"
    return Sample(key=name, image=name, mask=name, row=row)


class _BadTarError(Exception):
    """The tar as such cannot be used."""


@dataclass(frozen=True)
class _TarReader:
    """Reads samples by their rows in the index."""

    path: Path
    index: npt.NDArray[np.int64]

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""
        _, image_offset, image_size, mask_offset, mask_size, _ = self.index[sample.row].tolist()
        with open(self.path, "rb") as file:
            file.seek(image_offset)
            image = file.read(image_size)
            file.seek(mask_offset)
            return image, file.read(mask_size)


def _as_it_is(image: bytes, mask_size: tuple[int, int], exif: Drawn | None = None) -> Picture:
    """An image that stays in its tar."""
    opened = open_image(image)
    pixels = decode_image(image, 3)
    if pixels.shape[:2] != mask_size:
        raise DataError(
            f"image is {pixels.shape[1]}x{pixels.shape[0]}, mask is {mask_size[1]}x{mask_size[0]} "
            "(width x height); pack the sample anew."
        )
    if is_to_be_turned(mask_size, opened.orientation, mask_size, exif):
        raise DataError(
            "image must be turned upright, but tars are never changed; unpack the tars and write shards "
            "of the files with --exif upright."
        )
    return Picture(image, "", pixels, opened.channels, True, _extremes(opened, image))


def _extremes(opened: OpenedImage, image: bytes) -> tuple[float, float] | None:
    """Return the extremes of an image of more than 8 bits, of which the high byte is read.

    Raises:
        DataError: What is read of it where it lies is not what shards of our own would hold.
    """
    if opened.is_plain:
        return None
    values = opened.values()
    pixels = eight_bit(values, HIGH_BYTE if values.dtype == np.uint16 else None, remedy=_UNFIT)
    if not np.array_equal(decode_image(image, pixels.shape[2]), pixels):
        raise DataError(f"image has {values.shape[2]} bands of {values.dtype}; {_UNFIT}")
    return extremes_of_deep(values)


_UNFIT = (
    "an indexed tar gives 8-bit grey, RGB and RGBA, and the high byte of 16 bits: unpack it, and write "
    "shards of its images and masks (shard_dataset.py --images DIR --masks DIR)."
)


def _is_index_mask(data: bytes, mask: npt.NDArray[np.uint8]) -> bool:
    """Whether its values are the classes already, in the form that is read fastest."""
    start, kind = _GREY_PNG
    return data[:8] == start and data[24:26] == kind and np.array_equal(decode_mask(data), mask)


def _stamp(source: Folder, name: str) -> str:
    if not _is_local(source, name):
        return ""
    try:
        stat = source.path(name).stat()
    except OSError:
        return "cannot be read"
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _is_local(source: Folder, name: str) -> bool:
    return source.is_local and not is_url(name)
