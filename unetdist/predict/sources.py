"""Finds the images of `--input`: files, folders, patterns, lists of paths and URLs, shards, videos."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import cv2

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES, decode_image
from unetdist.data.image_file import ImageRange, warn_of_other_range
from unetdist.data.loader import DataConfig, open_reader
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.predict.image import LoadedImage, PendingImage, read_picture
from unetdist.sharding.sources import spelled
from unetdist.storage.folders import open_folder
from unetdist.storage.remote import is_url, refusal

LIST_SUFFIXES = (".txt", ".lst", ".list")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
MANIFEST = "manifest.json"

# Conversion from OpenCV's channel order, by number of channels.
_FROM_OPENCV = {1: cv2.COLOR_BGR2GRAY, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGR2RGBA}

NamedFile = TypeVar("NamedFile", str, Path)

# Returns whether to read the image of this number and target; without a target, whether this process may read it.
Wanted = Callable[[int, Path | None], bool]


@dataclass(frozen=True)
class InputImage:
    """A path or URL, and where its results go: `<target>_ids.png` and others."""

    source: Path | str
    target: Path


def open_source(
    location: str | Path | Sequence[str], out: Path, *, every: int = 1, image_range: ImageRange | None = None
) -> "ImageSource":
    """Open the images of `location`; see `launch/predict.py --help`.

    Args:
        location: a place, or several images.
        out: folder for the results.
        every: take every N-th frame of a video.
        image_range: range of the training images; None if unknown.

    Raises:
        DataError: nothing is there, or two images would have the same result.
    """
    if not isinstance(location, (str, Path)):
        if len(location) != 1:
            return Files(_several(location, out, source="--input"), image_range)
        location = location[0]
    text, path = str(location), Path(location)
    _refuse_unreadable([text])
    suffix = PurePosixPath(urlsplit(text).path if is_url(text) else text).suffix.lower()
    if suffix in VIDEO_SUFFIXES and (is_url(text) or path.is_file()):
        return Video(text, out, every=every)
    if is_url(text):
        if suffix in PICTURE_SUFFIXES:
            return Files([InputImage(text, out / _stem(text))], image_range)
        return _remote(text, out, image_range)
    if path.is_file() and suffix in LIST_SUFFIXES:
        return Files(_listed(path, out), image_range)
    if (path / MANIFEST).is_file():
        return Shards(text, out, image_range)
    # A file that exists is never a pattern, whatever characters its name has.
    if not path.exists() and glob.has_magic(text):
        return Files(_matched(text, out), image_range)
    return Files(_found(path, out), image_range)


class Files:
    """Images by path or URL."""

    resize = None

    def __init__(self, images: Sequence[InputImage], image_range: ImageRange | None = None) -> None:
        self._images, self._image_range = images, image_range
        self.total = len(images)
        paths = "".join(f"{image.source}\0" for image in images)
        self.fingerprint = hashlib.sha256(paths.encode(errors="surrogateescape")).hexdigest()

    def items(self, wanted: Wanted) -> Iterator[PendingImage | None]:
        """Yield the images in their order."""
        for number, image in enumerate(self._images):
            load = partial(read_picture, image.source, image_range=self._image_range)
            is_wanted = wanted(number, image.target)
            yield PendingImage(mask(str(image.source)), image.target, load) if is_wanted else None


class Shards:
    """The stored images of shards, not turned upright, because their masks were drawn on the stored pixels."""

    def __init__(self, location: str, out: Path, image_range: ImageRange | None) -> None:
        folder = open_folder(location)
        self._reader = open_reader(DataConfig(train=location), folder, Manifest.load(folder))
        self._out = out
        self.total = self._reader.manifest.num_samples
        self.fingerprint = self._reader.manifest.fingerprint
        self.resize = self._reader.manifest.resize
        warn_of_other_range(folder, self._reader.manifest.image_range, image_range)

    def items(self, wanted: Wanted) -> Iterator[PendingImage | None]:
        """Yield the images in the order of the shards, with the samples' keys as names of the results."""
        for number in range(self.total):
            # The key is read from the tar, so first ask whether this process takes the image at all.
            if not wanted(number, None):
                yield None
                continue
            target = self._out / self._reader.key(number)
            name = self._reader.source(number)
            if not target.resolve().is_relative_to(self._out.resolve()):
                raise DataError("its key leads out of the output folder; write the shards again.", source=name)
            yield PendingImage(name, target, partial(self._load, number)) if wanted(number, target) else None

    def _load(self, number: int, channels: int) -> LoadedImage:
        return LoadedImage(decode_image(self._reader.read(number)[0], channels))


class Video:
    """The frames of a video, upright as in a player. Frame 123 of NAME.mp4 becomes NAME_000123."""

    resize = None

    def __init__(self, location: str, out: Path, *, every: int = 1) -> None:
        """Open a video; `every` takes every N-th frame, beginning with the first.

        Raises:
            ConfigError: `every` is below 1.
            DataError: OpenCV cannot read the video.
        """
        if every < 1:
            raise ConfigError(f"--every ({every}) must be 1 or more; use 10 for every tenth frame.")
        self._location, self._every = location, every
        self._target = out / _stem(location)
        video = self._open()
        # An estimate in some containers, so reading another number of frames is no error.
        self._num_frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        self.total = -(-self._num_frames // every) if self._num_frames > 0 else None
        self.fingerprint = f"{location} {self._num_frames} {every}"

    def items(self, wanted: Wanted) -> Iterator[PendingImage | None]:
        """Yield the frames in their order, decoded one by one: a jump would miss the frame in many formats."""
        video = self._open()
        try:
            frame = 0
            while video.grab():
                if frame % self._every == 0:
                    target = self._target.with_name(f"{self._target.name}_{frame:06d}")
                    is_wanted = wanted(frame // self._every, target)
                    yield self._item(video, frame, target) if is_wanted else None
                frame += 1
        finally:
            video.release()
        if frame < self._num_frames:
            logger.warning("%s ended after %d of %d frames", mask(self._location), frame, self._num_frames)

    def _item(self, video: Any, frame: int, target: Path) -> PendingImage:
        is_whole, pixels = video.retrieve()

        def load(channels: int) -> LoadedImage:
            if not is_whole:
                raise DataError("the frame cannot be decoded; convert the video again.")
            converted = cv2.cvtColor(pixels, _FROM_OPENCV[channels])
            return LoadedImage(converted.reshape(*pixels.shape[:2], channels))

        return PendingImage(f"{mask(self._location)}, frame {frame}", target, load)

    def _open(self) -> Any:
        # OpenCV's GStreamer backend would run commands in a file name, and FFmpeg would follow a protocol in it unless
        # the name begins with a folder.
        location = self._location if is_url(self._location) else os.path.abspath(self._location)  # noqa: PTH100
        video = cv2.VideoCapture(location, cv2.CAP_FFMPEG)
        if not video.isOpened():
            raise DataError(
                "cannot be read as a video; convert it to MP4 (H.264), or give --input a folder of its frames.",
                source=mask(self._location),
            )
        return video


# Each has the images in an order that is equal for every process, and tells
# - `total`: the number of images, None if unknown before the end;
# - `fingerprint`: a text that is equal for processes that see the same images;
# - `resize`: (width, height) to which the images were resized before, None if they were not;
# - `items(wanted)`: every image, and None for one that is not wanted.
ImageSource = Files | Shards | Video


def _found(source: Path, out: Path) -> list[InputImage]:
    """List an image, or the images of a folder and its inner folders by name, without hidden files and `out`."""
    if source.is_file():
        return [InputImage(source, out / source.stem)]
    if not source.is_dir():
        raise DataError(
            "does not exist; give --input an image, a folder, a pattern in quotes, a list, shards or a video.",
            source=source,
        )
    if source.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"is inside the output folder {out}, so results would mix with images; give --out another folder.",
            source=source,
        )
    inner = [path.relative_to(source) for path in sorted(source.rglob("*")) if _is_input(path, out)]
    # Hidden files are mostly caches and the previews of other programs.
    shown = [path for path in inner if not any(part.startswith(".") for part in path.parts)]
    images = [InputImage(source / path, out / path.with_suffix("")) for path in _images_among(shown, source)]
    if not images:
        raise DataError(f"no images in it; looked for {', '.join(PICTURE_SUFFIXES)}.", source=source)
    return _distinct(images)


def _remote(url: str, out: Path, image_range: ImageRange | None) -> ImageSource:
    """Open a folder behind a URL: shards, or the images directly in it."""
    folder = open_folder(url)
    try:
        folder.size(MANIFEST)
    except FileNotFoundError:
        names = _images_among(folder.names(), folder)
        if not names:
            raise DataError(
                "the server lists no images directly in it; give --input a list of their URLs.", source=folder
            ) from None
        images = _distinct(InputImage(folder.where(name), out / _stem(name)) for name in names)
        return Files(images, image_range)
    return Shards(url, out, image_range)


def _matched(pattern: str, out: Path) -> list[InputImage]:
    """List the files that match a pattern by name; `**` matches folders at any depth."""
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (it may begin at the root)
    paths = _images_among([path for path in paths if _is_input(path, out)], pattern)
    if not paths:
        raise DataError("matches no image; give --input another pattern, in quotes.", source=pattern)
    return _below(paths, out)


def _listed(file: Path, out: Path) -> list[InputImage]:
    """List the paths and URLs in a text file, one per line; empty lines and lines with `#` are skipped."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as a list ({error}); write one path or URL per line, in UTF-8.", source=file
        ) from None
    if entries := [line for line in lines if line and not line.startswith("#")]:
        return _several(entries, out, source=file)
    raise DataError("lists no images; write one path or URL per line.", source=file)


def _several(entries: Sequence[str], out: Path, *, source: object) -> list[InputImage]:
    """List files and URLs, each once."""
    _refuse_unreadable(entries)
    entries = [entry if is_url(entry) else spelled(Path(), entry) or entry for entry in entries]
    absent = [entry for entry in entries if not is_url(entry) and not Path(entry).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of its {len(entries)} images are not files, the first is {absent[0]}; relative paths "
            f"begin in the current folder ({Path.cwd()}).",
            source=source,
        )
    # Without duplicates, which would both write the same results.
    return _below([entry if is_url(entry) else Path(entry) for entry in dict.fromkeys(entries)], out)


def _refuse_unreadable(locations: Iterable[str]) -> None:
    for location in locations:
        if is_url(location) and (problem := refusal(location)):
            raise ConfigError(f"{mask(location)}: {problem}")


def _below(sources: Iterable[Path | str], out: Path) -> list[InputImage]:
    """Keep the folders below the one that all sources share."""
    places = {source: _place(source) for source in sources}
    common = os.path.commonpath([place.parent for place in places.values()])
    return _distinct(
        InputImage(source, out / place.relative_to(common).with_suffix("")) for source, place in places.items()
    )


def _place(source: Path | str) -> PurePosixPath:
    """Return the path of a source in one tree of all servers and disks."""
    if isinstance(source, Path):
        return PurePosixPath(os.path.abspath(source))  # noqa: PTH100 (a link keeps its name)
    parts = urlsplit(source)
    return PurePosixPath("/", os.path.normpath(f"/{parts.netloc}{unquote(parts.path)}").lstrip("/"))


def _distinct(images: Iterable[InputImage]) -> list[InputImage]:
    by_target: dict[Path, InputImage] = {}
    for image in images:
        if (other := by_target.setdefault(image.target, image)) is not image:
            raise DataError(
                f"this and {mask(str(other.source))} would both write {image.target}_ids.png; rename one of them.",
                source=mask(str(image.source)),
            )
    return list(by_target.values())


def _images_among(names: Iterable[NamedFile], where: object) -> list[NamedFile]:
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
