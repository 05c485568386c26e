"""WebDataset tars that others wrote: where they are, which members are masks, and their index. They never change."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from unetdist.cli.credentials import mask as mask_credentials
from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES, decode_mask
from unetdist.data.manifest import Shard
from unetdist.data.shards import encode_index, sha256_of
from unetdist.data.tar_index import MemberNames, index_tar, read_key, read_members
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.account import Account
from unetdist.sharding.convert import ConvertedSample, Converter
from unetdist.sharding.first_look import NUM_SAMPLES, look
from unetdist.sharding.shard_job import FinishedShard, ShardJob, has_index, has_size
from unetdist.sharding.sources import Problem, RawSample, read_lines
from unetdist.sharding.stored_image import keep_image
from unetdist.storage.files import file_sha256, open_file
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import is_url

# Kind of `Problem`.
BAD_TAR = "bad tar"

# Bytes of a remote tar in which its first sample is sought.
_START = 64 * 2**20
# Words in extensions that public data sets use for masks.
_MASK_WORDS = re.compile("mask|seg|label|annot|target|gt|cls|class")
# A lossy file cannot be a mask, so of two pictures the other one is.
_LOSSY = (".jpg", ".jpeg", ".webp")
_SECRET = re.compile("[?&;#][^=&;/]*(token|sig|key|secret|passw|pwd|auth|cred|policy|hdn)[^=&;/]*=", re.I)

_PNG_SIGNATURE, _GREY_8_BIT = b"\x89PNG\r\n\x1a\n", b"\x08\x00"


@dataclass(frozen=True)
class ForeignTars:
    """Tars of others, and where index and manifest go."""

    source: Folder
    names: tuple[str, ...]
    """Names in `source`, or URLs and absolute paths."""
    out: Folder
    shard_names: tuple[str, ...]
    """Names in the manifest, as seen from `out`."""


def find_tars(location: str, out: str | None = None) -> ForeignTars:
    """The tars at a location.

    Args:
        location: A folder or its URL; a tar; `https://host/train-{000000..000099}.tar`; or a text file that lists
            tars, one per line, relative to the file's own folder.
        out: Where index and manifest go; None: next to the tars.

    Raises:
        DataError: There are none.
        ConfigError: `out` is needed because the tars are in several folders.
    """
    source, names = _list(location)
    if not names:
        raise DataError(
            "no .tar files here; give the folder that holds the shards. A web server that does not list its files "
            "needs their names: https://host/train-{000000..000099}.tar, or a text file with one URL per line.",
            source=mask_credentials(location),
        )
    places = [source.where(name) for name in names]
    parents = set(map(_parent, places))
    if out is not None and parents != {_parent(f"{out.rstrip('/')}/tar")}:
        shard_names = [_kept(place) if is_url(place) else str(Path(place).resolve()) for place in places]
        target = open_folder(out)
        if not target.is_local and not all(map(is_url, shard_names)):
            raise ConfigError(
                f"--out ({mask_credentials(out)}) is on another machine, which cannot see the tars in {source}; "
                "give a local --out, or upload the tars and index them there."
            )
        return ForeignTars(source, tuple(names), target, tuple(shard_names))
    if len(parents) > 1:
        raise ConfigError(f"the tars are in {len(parents)} folders; say where index and manifest go with --out DIR.")
    if any("/" in name for name in names):
        names = [name.rpartition("/")[2] for name in names]
        source = open_folder(parents.pop())
    return ForeignTars(source, tuple(names), source, tuple(names))


def _parent(tar: str) -> str:
    """The folder of a tar: an absolute path, or a URL without its query."""
    return tar.partition("?")[0].rpartition("/")[0] if is_url(tar) else str(Path(tar).parent.resolve())


def _kept(url: str) -> str:
    """The URL of a tar, if a manifest may contain it."""
    if _SECRET.search(url) or "@" in urlsplit(url).netloc:
        raise ConfigError(
            f"{mask_credentials(url)} has a password, token or signature, which a manifest must not contain; write "
            "user and password into ~/.netrc instead, which is read for every access, or index a copy of the tars."
        )
    return url


def _list(location: str) -> tuple[Folder, list[str]]:
    if "{" in location:
        import braceexpand

        return open_folder("."), list(braceexpand.braceexpand(location))
    path = location.partition("?")[0] if is_url(location) else location
    if path.endswith(".tar") and not Path(location).is_dir():
        return open_folder("."), [location]
    if Path(location).is_file():
        lines = (line.strip() for line in read_lines(Path(location)))
        return open_folder(Path(location).parent), [line for line in lines if line and line[0] != "#"]
    folder = open_folder(location)
    if folder.is_local:  # names() would hide dangling links, which must be reported
        return folder, sorted(path.name for path in folder.path("").glob("*.tar"))
    return folder, folder.names(".tar")


def guess_names(tars: ForeignTars, *, image: str | None = None) -> MemberNames:
    """Guess which members are masks from the first sample of the first tar.

    Raises:
        DataError: There are several candidates or none; the message lists the extensions.
    """
    source, name = tars.source, tars.names[0]
    where = mask_credentials(source.where(name))
    try:
        with tempfile.NamedTemporaryFile(prefix="unetdist-") as file:
            if not source.is_in_place(name):
                source.download(name, file, most=_START)
                file.flush()
            extensions = _first_extensions(source.path(name) if source.is_in_place(name) else Path(file.name))
    except OSError as error:
        raise DataError(
            f"cannot be read ({error}); fix that, or say which members are masks with --mask-ext.", source=where
        ) from None
    choice = [extension for extension in extensions if _MASK_WORDS.search(extension.lower())]
    if len(extensions) == 2 and len(choice) != 1:
        choice = [extension for extension in extensions if not extension.lower().endswith(_LOSSY)]
    if len(extensions) < 2 or len(choice) != 1:
        raise DataError(
            f"the pictures of its first sample are {', '.join(extensions) or 'none'}, which does not tell the masks; "
            'name them, for example with --mask-ext seg.png or with --mask-name "{stem}_mask.png".',
            source=where,
        )
    logger.info("masks are the members %s (as in %s); change this with --mask-ext.", choice[0], where)
    return MemberNames("{stem}" + choice[0], image)


def _first_extensions(path: Path) -> list[str]:
    """Extensions of the pictures of the first sample in a tar that has any."""
    extensions, first = list[str](), None
    with open_file(path) as file, suppress(DataError):  # a downloaded part has no end
        for member in read_members(file, path):
            stem, _, extension = PurePosixPath(member.name).name.partition(".")
            if not stem:  # a hidden file, such as macOS's ._0.jpg, belongs to no sample
                continue
            key = PurePosixPath(member.name).with_name(stem)
            if extensions and key != first:
                break
            if f".{extension}".lower().endswith(PICTURE_SUFFIXES):
                first = key
                extensions.append(f".{extension}")
    return extensions


@dataclass(frozen=True, kw_only=True)
class IndexJob(ShardJob):
    """A tar of others to be indexed after all its samples were examined."""

    source: Folder
    """Folder of the tar."""
    name: str
    """Name of the tar in `source`."""
    shard_name: str
    """Name in the manifest, as seen from `folder`."""
    names: MemberNames

    @property
    def inputs(self) -> list[Any]:
        """The tar (a local one with its size and time) and the names of its masks."""
        # Hashing local tars on every start would take minutes per terabyte.
        stamp = ""
        if self.source.is_in_place(self.name):
            stamp = "cannot be read"
            with suppress(OSError):
                stat = self.source.path(self.name).stat()
                stamp = f"{stat.st_size}:{stat.st_mtime_ns}"
        return [self.shard_name, stamp, asdict(self.names)]

    @property
    def where(self) -> str:
        """The tar for messages, without credentials."""
        return mask_credentials(self.source.where(self.name))

    def has_sizes(self, shard: Shard) -> bool:
        """Whether tar and index exist with the right sizes."""
        return has_size(self.source, self.name, shard.num_bytes) and has_index(self.folder, shard)

    def is_intact(self, shard: Shard) -> bool:
        """Check a local tar by its size (its time is in the fingerprint), a remote one by its hash."""
        if not self.has_sizes(shard):
            return False
        if self.source.is_in_place(self.name):
            return True
        try:
            with self._tar() as path:
                return file_sha256(path) == shard.sha256
        except _BadTarError:
            return False

    def make(self) -> FinishedShard:
        """Index the tar, unless one of its samples is bad."""
        try:
            with self._tar() as path:
                return self._index(path)
        except _BadTarError as error:
            account = Account(problems=[Problem(BAD_TAR, self.where, str(error))])
            return FinishedShard(self.number, 0, None, account, has_index_masks=False)

    def look(self) -> None:
        """Look at a few samples of a local tar before all are read; see `first_look.look`."""
        if not self.source.is_in_place(self.name):
            return
        path = self.source.path(self.name)
        try:
            index = index_tar(path, self.names)
        except (DataError, OSError):
            return  # reported when the tar is indexed
        rows = range(0, len(index), max(1, len(index) // NUM_SAMPLES))
        samples = [_sample(path, path, row, int(index[row, 0])) for row in rows]
        look(_TarReader(path, index), samples, self.palette, self.options)

    @contextmanager
    def _tar(self) -> Iterator[Path]:
        """The tar as a local file."""
        if self.source.is_in_place(self.name):
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

    def _index(self, path: Path) -> FinishedShard:
        try:
            index = index_tar(path, self.names, source=self.where)
            num_bytes, sha256 = path.stat().st_size, file_sha256(path)
        except DataError as error:
            raise _BadTarError(str(error).removeprefix(f"{error.source}: ")) from None
        except OSError as error:
            raise _BadTarError(f"cannot be read: {error.strerror or error}") from None
        converter = Converter(
            _TarReader(path, index), self.palette, self.options, partial(keep_image, exif=self.options.exif)
        )
        has_index_masks = True
        for row, header_offset in enumerate(index[:, 0].tolist()):
            good = converter.convert(_sample(path, self.where, row, header_offset))
            has_index_masks &= good is not None and _has_index_mask(good)
        shard = None
        if not converter.account.problems:
            shard = Shard(self.shard_name, len(index), num_bytes, sha256, sha256_of(index))
            self.folder.write(shard.index_name, encode_index(index))
        return FinishedShard(self.number, len(index), shard, converter.account, has_index_masks)


class _BadTarError(Exception):
    """The tar itself cannot be used."""


@dataclass(frozen=True)
class _TarReader:
    """Reads samples by their rows in the index."""

    path: Path
    index: npt.NDArray[np.int64]

    def read(self, sample: RawSample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""
        _, image_offset, image_size, mask_offset, mask_size, _ = self.index[sample.row].tolist()
        with open(self.path, "rb") as file:
            file.seek(image_offset)
            image = file.read(image_size)
            file.seek(mask_offset)
            return image, file.read(mask_size)


def _sample(path: Path, shown: object, row: int, header_offset: int) -> RawSample:
    """Sample `row` of the tar at `path`, which messages call `shown`."""
    name = f"{shown}, key {read_key(path, header_offset)}"
    return RawSample(key=name, image=name, mask=name, row=row)


def _has_index_mask(sample: ConvertedSample) -> bool:
    """Whether the mask file holds class indices already, in the form that is read fastest."""
    data = sample.mask_file
    is_grey = data[:8] == _PNG_SIGNATURE and data[24:26] == _GREY_8_BIT
    return is_grey and np.array_equal(decode_mask(data), sample.mask)
