"""Where pictures come from: files, folders, patterns, lists of paths and URLs, shards, videos."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES, decode_image
from unetdist.data.image_file import ImageRange, warn_of_other_range
from unetdist.data.loader import DataConfig, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.errors import ConfigError, DataError
from unetdist.predict.image import Item, Picture, Wanted, read_picture
from unetdist.predict.video import VIDEO_SUFFIXES, Video
from unetdist.sharding.sources import spelled
from unetdist.storage.folders import open_folder
from unetdist.storage.remote import is_url, refusal

LIST_SUFFIXES = (".txt", ".lst", ".list")
MANIFEST = "manifest.json"

NamedFile = TypeVar("NamedFile", str, Path)


@dataclass(frozen=True)
class Job:
    """An image, a path or a URL, and where its results go: `<target>_ids.png` and others."""

    source: Path | str
    target: Path


class Source(Protocol):
    """Pictures in an order that is the same for every process."""

    @property
    def total(self) -> int | None:
        """How many there are, if that is known before the end."""

    @property
    def fingerprint(self) -> str:
        """Equal for processes that see the same pictures."""

    @property
    def resize(self) -> tuple[int, int] | None:
        """(width, height) that the pictures were resized to when they became what they are, if known."""

    def items(self, wanted: Wanted) -> Iterator[Item | None]:
        """Every picture; None in place of one that is not wanted, which is not read."""


def open_source(
    location: str | Path | Sequence[str], out: Path, *, every: int = 1, image_range: ImageRange | None = None
) -> Source:
    """The images that `location`, or several, name: see `launch/predict.py --help`.

    Args:
        location: a place, or several images.
        out: folder of the results.
        every: of a video, every N-th frame.
        image_range: that of the images trained on; None: unknown.

    Raises:
        DataError: nothing is there, or two pictures would have one result.
    """
    if not isinstance(location, (str, Path)):
        if len(location) != 1:
            return Files(_images(location, out, source="--input"), image_range)
        location = location[0]
    text, path = str(location), Path(location)
    _check([text])
    suffix = PurePosixPath(urlsplit(text).path if is_url(text) else text).suffix.lower()
    if suffix in VIDEO_SUFFIXES and (is_url(text) or path.is_file()):
        return Video(text, out, every=every)
    if is_url(text):
        if suffix in PICTURE_SUFFIXES:
            return Files([Job(text, out / _stem(text))], image_range)
        return _remote(text, out, image_range)
    if path.is_file() and suffix in LIST_SUFFIXES:
        return Files(_listed(path, out), image_range)
    if (path / MANIFEST).is_file():
        return Shards(text, out, image_range)
    if not path.exists() and glob.has_magic(text):
        return Files(_matched(text, out), image_range)
    return Files(find_jobs(path, out), image_range)


def find_jobs(source: Path, out: Path) -> list[Job]:
    """The images of `source`, a file or a folder with folders in it, by name.

    Folders below `source` are kept below `out`. Hidden files are skipped, and so is `out` inside `source`.

    Raises:
        DataError: nothing there, no images, `source` lies in `out`, or two files would have one result.
    """
    if source.is_file():
        return [Job(source, out / source.stem)]
    if not source.is_dir():
        raise DataError(
            "does not exist; give --input an image, a folder, a pattern in quotes, a list, shards or a video.",
            source=source,
        )
    if source.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"lies in the output folder {out}, and results would mix with images; give --out another folder.",
            source=source,
        )
    inner = [path.relative_to(source) for path in sorted(source.rglob("*")) if _is_input(path, out)]
    shown = [path for path in inner if not any(part.startswith(".") for part in path.parts)]
    jobs = [Job(source / path, out / path.with_suffix("")) for path in pictures_among(shown, source)]
    if not jobs:
        raise DataError(f"no images in it; looked for {', '.join(PICTURE_SUFFIXES)}.", source=source)
    return _distinct(jobs)


@dataclass(frozen=True)
class Files:
    """Images by path or URL."""

    jobs: list[Job]
    image_range: ImageRange | None = None
    """That of the images trained on; None: unknown."""
    resize = None

    @property
    def total(self) -> int:
        """All of them."""
        return len(self.jobs)

    @property
    def fingerprint(self) -> str:
        """Of the paths."""
        digest = hashlib.sha256()
        for job in self.jobs:
            digest.update(f"{job.source}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def items(self, wanted: Wanted) -> Iterator[Item | None]:
        """In their order."""
        for number, job in enumerate(self.jobs):
            name = mask(job.source) if isinstance(job.source, str) else str(job.source)
            yield (
                Item(name, job.target, partial(read_picture, job.source, image_range=self.image_range))
                if wanted(number, job.target)
                else None
            )


class Shards:
    """The images of shards, as they are stored: their masks were drawn on the pixels before any turning."""

    def __init__(self, location: str, out: Path, image_range: ImageRange | None = None) -> None:
        folder = open_folder(location)
        self._reader = open_reader(DataConfig(train=location), folder, Manifest.load(folder))
        self._out = out
        self.total = self._reader.manifest.num_samples
        self.fingerprint = self._reader.manifest.fingerprint
        self.resize = self._reader.manifest.resize
        warn_of_other_range(folder, self._reader.manifest.image_range, image_range)

    def items(self, wanted: Wanted) -> Iterator[Item | None]:
        """In the order of the shards; a result has its sample's key as name."""
        for number in range(self.total):
            # A key is read from the tar: first whether it is this process's picture at all.
            if not wanted(number, None):
                yield None
                continue
            target = self._out / self._reader.key(number)
            if not target.resolve().is_relative_to(self._out.resolve()):
                raise DataError(
                    "its key leads out of the output folder; write the shards again.",
                    source=self._reader.source(number),
                )
            load = partial(_stored, self._reader, number)
            yield Item(self._reader.source(number), target, load) if wanted(number, target) else None


def _stored(reader: ShardReader, number: int, channels: int) -> Picture:
    return Picture(decode_image(reader.read(number)[0], channels))


def _remote(url: str, out: Path, image_range: ImageRange | None) -> Source:
    """A folder behind a URL: shards, or the images directly in it."""
    folder = open_folder(url)
    try:
        folder.size(MANIFEST)
    except FileNotFoundError:
        names = pictures_among(folder.names(), folder)
        if not names:
            raise DataError(
                "no images directly in it that the server would list; give --input a list of their URLs.", source=folder
            ) from None
        return Files(_distinct(Job(folder.where(name), out / _stem(name)) for name in names), image_range)
    return Shards(url, out, image_range)


def _matched(pattern: str, out: Path) -> list[Job]:
    """The files that a pattern names (`**`: in folders at any depth), by name."""
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (a pattern may begin at the root)
    paths = pictures_among([path for path in paths if _is_input(path, out)], pattern)
    if not paths:
        raise DataError("no image has such a name; give --input another pattern, in quotes.", source=pattern)
    return _below(paths, out)


def _listed(file: Path, out: Path) -> list[Job]:
    """The paths and URLs in a text file, one per line; empty lines and those after `#` are skipped."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as a list ({error}); write one path or URL per line, in UTF-8.", source=file
        ) from None
    if entries := [line for line in lines if line and not line.startswith("#")]:
        return _images(entries, out, source=file)
    raise DataError("lists no images; write one path or URL per line.", source=file)


def _images(entries: Sequence[str], out: Path, *, source: object) -> list[Job]:
    """Files and URLs, each once."""
    _check(entries)
    entries = [entry if is_url(entry) else spelled(Path(), entry) or entry for entry in entries]
    absent = [entry for entry in entries if not is_url(entry) and not Path(entry).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of its {len(entries)} images are no files, the first is {absent[0]}; relative paths "
            f"begin in the folder where the command is typed ({Path.cwd()}).",
            source=source,
        )
    return _below([entry if is_url(entry) else Path(entry) for entry in dict.fromkeys(entries)], out)


def _check(locations: Iterable[str]) -> None:
    for location in locations:
        if is_url(location) and (problem := refusal(location)):
            raise ConfigError(f"{mask(location)}: {problem}")


def _below(sources: Iterable[Path | str], out: Path) -> list[Job]:
    """Results in the folders that the sources have below the one that is common to all."""
    places = {source: _place(source) for source in sources}
    common = os.path.commonpath([place.parent for place in places.values()])
    return _distinct(Job(source, out / place.relative_to(common).with_suffix("")) for source, place in places.items())


def _place(source: Path | str) -> PurePosixPath:
    """As if all servers and disks were one tree."""
    if isinstance(source, Path):
        return PurePosixPath(os.path.abspath(source))  # noqa: PTH100 (a link keeps its name)
    parts = urlsplit(source)
    return PurePosixPath("/", os.path.normpath(f"/{parts.netloc}{unquote(parts.path)}").lstrip("/"))


def _distinct(jobs: Iterable[Job]) -> list[Job]:
    by_target: dict[Path, Job] = {}
    for job in jobs:
        if (other := by_target.setdefault(job.target, job)) is not job:
            raise DataError(
                f"this and {mask(str(other.source))} would both write {job.target}_ids.png; rename one of them.",
                source=mask(str(job.source)),
            )
    return list(by_target.values())


def pictures_among(names: Iterable[NamedFile], where: object) -> list[NamedFile]:
    """Keep the files with an image suffix, and log one line about the others."""
    found, others = list[NamedFile](), list[NamedFile]()
    for name in names:
        (found if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES else others).append(name)
    if found and others:
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in others)
        logger.warning(
            "%s: skipped %d files without an image suffix (%s), the first is %s; to predict one, give its path to "
            "--input.",
            where,
            len(others),
            ", ".join(f"{kind}: {number}" for kind, number in kinds.most_common(5)),
            others[0],
        )
    return found


def _is_input(path: Path, out: Path) -> bool:
    return path.is_file() and not path.resolve().is_relative_to(out.resolve())


def _stem(name: str) -> str:
    return PurePosixPath(unquote(urlsplit(name).path) if is_url(name) else name).stem
