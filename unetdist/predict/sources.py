"""Finds the images of `--input`: files, folders, patterns, lists of paths and URLs, shards, videos."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.data.config import DataConfig
from unetdist.data.decode import PICTURE_SUFFIXES, decode_image
from unetdist.data.image_file import ImageRange, warn_of_other_range, with_channels
from unetdist.data.loader import open_reader
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.predict.image import LoadedImage, PendingImage, read_picture
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import is_url, refusal

LIST_SUFFIXES = (".txt", ".lst", ".list")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
MANIFEST = "manifest.json"

# Returns whether to read the image of this number and target; without a target, whether this process may read it.
Wanted = Callable[[int, Path | None], bool]


def open_source(
    location: str | Path | Sequence[str], out: Path, *, every: int = 1, image_range: ImageRange | None = None
) -> "ImageSource":
    """Open the images of `location`; see `unetdist predict --help`.

    Args:
        location: a place, or several images.
        out: folder for the results.
        every: take every N-th frame of a video.
        image_range: range of the training images; None if unknown.

    Raises:
        DataError: nothing is there, or two images would have the same result.
    """
    words = [str(location)] if isinstance(location, (str, Path)) else list(location)
    if len(words) > 1:
        return Files(_listed(words, out, source="--input"), image_range)
    text, path = words[0], Path(words[0])
    _refuse_unreadable(words)
    suffix = _place(text).suffix.lower()
    if suffix in VIDEO_SUFFIXES and (is_url(text) or path.is_file()):
        return Video(text, out, every=every)
    if suffix in PICTURE_SUFFIXES and is_url(text):
        return Files(_listed(words, out, source=text), image_range)
    if is_url(text) or (path / MANIFEST).is_file():
        folder = open_folder(text)
        if _has_manifest(folder):
            return Shards(folder, out, image_range)
        words = [folder.where(name) for name in _pictures(folder.names(), text)]
    elif path.is_dir():
        return Files(_inside(path, out), image_range)
    elif path.is_file():
        words = _lines(path) if suffix in LIST_SUFFIXES else words
    # A file that exists is never a pattern, whatever characters its name has.
    elif glob.has_magic(text):
        words = _pictures([name for name in sorted(glob.glob(text, recursive=True)) if _is_input(name, out)], text)  # noqa: PTH207
    else:
        raise DataError(
            "does not exist; give --input an image, a folder, a pattern in quotes, a list, shards or a video.",
            source=text,
        )
    return Files(_listed(words, out, source=text), image_range)


class Files:
    """Images by path or URL."""

    resize = None

    def __init__(self, images: Mapping[Path, str], image_range: ImageRange | None = None) -> None:
        """Take paths and URLs by target: the results of an image go to `<target>_ids.png` and others."""
        self._images, self._image_range = images, image_range
        self.total = len(images)
        names = "\0".join(images.values())
        self.fingerprint = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def items(self, wanted: Wanted) -> Iterator[PendingImage | None]:
        """Yield the images in their order."""
        for number, (target, name) in enumerate(self._images.items()):
            load = partial(read_picture, name if is_url(name) else Path(name), image_range=self._image_range)
            yield PendingImage(mask(name), target, load) if wanted(number, target) else None


class Shards:
    """The stored images of shards, not turned upright, because their masks were drawn on the stored pixels."""

    def __init__(self, folder: Folder, out: Path, image_range: ImageRange | None) -> None:
        self._reader = open_reader(DataConfig(train=folder.location), folder, Manifest.load(folder))
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
        self._target = out / _place(location).stem
        # An estimate in some containers, so reading another number of frames is no error.
        self._num_frames = int(self._open().get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = -(-self._num_frames // every) if self._num_frames > 0 else None
        self.fingerprint = f"{location} {self._num_frames} {every}"

    def items(self, wanted: Wanted) -> Iterator[PendingImage | None]:
        """Yield the frames in their order, decoded one by one: a jump would miss the frame in many formats."""
        video = self._open()
        frame = 0
        while video.grab():
            if frame % self._every == 0:
                target = self._target.with_name(f"{self._target.name}_{frame:06d}")
                name = f"{mask(self._location)}, frame {frame}"
                is_wanted = wanted(frame // self._every, target)
                yield PendingImage(name, target, partial(_frame, *video.retrieve())) if is_wanted else None
            frame += 1
        if frame < self._num_frames:
            logger.warning("%s ended after %d of %d frames", mask(self._location), frame, self._num_frames)

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


def _frame(is_whole: bool, pixels: np.ndarray, channels: int) -> LoadedImage:
    if not is_whole:
        raise DataError("the frame cannot be decoded; convert the video again.")
    return LoadedImage(with_channels(np.ascontiguousarray(pixels[..., ::-1]), channels))  # OpenCV has BGR


def _has_manifest(folder: Folder) -> bool:
    try:
        folder.read(MANIFEST)
    except FileNotFoundError:
        return False
    return True


def _inside(folder: Path, out: Path) -> dict[Path, str]:
    """List the images of a folder and its inner folders by name, without hidden files and `out`."""
    if folder.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"is inside the output folder {out}, so results would mix with images; give --out another folder.",
            source=folder,
        )
    paths = [path for path in sorted(folder.rglob("*")) if _is_input(path, out)]
    # Hidden files are mostly caches and the previews of other programs.
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return _targets(_pictures([str(path) for path in shown], folder), out, _place(str(folder)))


def _is_input(path: str | Path, out: Path) -> bool:
    return Path(path).is_file() and not Path(path).resolve().is_relative_to(out.resolve())


def _pictures(names: Sequence[str], where: object) -> list[str]:
    """Keep the files with an image suffix, and log how many others there are."""
    found = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        raise DataError(
            f"no images in it (looked for {', '.join(PICTURE_SUFFIXES)}); give --input another folder or pattern, or a "
            "list of paths and URLs.",
            source=mask(where),
        )
    if others := sorted(set(names) - set(found)):
        logger.warning(
            "%s: skipped %d files without an image suffix, the first is %s; to predict one, give its path to --input.",
            mask(where),
            len(others),
            others[0],
        )
    return found


def _lines(file: Path) -> list[str]:
    """Read the paths and URLs in a text file, one per line; empty lines and lines with `#` are skipped."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as a list ({error}); write one path or URL per line, in UTF-8.", source=file
        ) from None
    if entries := [line for line in lines if line and not line.startswith("#")]:
        return entries
    raise DataError("lists no images; write one path or URL per line.", source=file)


def _listed(entries: Sequence[str], out: Path, *, source: str) -> dict[Path, str]:
    """List files and URLs, each once, with the folders below the one that all of them share."""
    _refuse_unreadable(entries)
    # Windows separates folders by a backslash.
    entries = [entry if is_url(entry) or Path(entry).is_file() else entry.replace("\\", "/") for entry in entries]
    # The same file in two spellings, such as a.png and ./a.png, is one image.
    entries = [entry if is_url(entry) else str(Path(entry)) for entry in entries]
    absent = [entry for entry in entries if not is_url(entry) and not Path(entry).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of its {len(entries)} images are not files, the first is {absent[0]}; relative paths "
            f"begin in the current folder ({Path.cwd()}).",
            source=source,
        )
    return _targets(entries, out, PurePosixPath(os.path.commonpath([_place(entry).parent for entry in entries])))


def _refuse_unreadable(locations: Sequence[str]) -> None:
    for location in locations:
        if is_url(location) and (problem := refusal(location)):
            raise ConfigError(f"{mask(location)}: {problem}")


def _targets(sources: Sequence[str], out: Path, base: PurePosixPath) -> dict[Path, str]:
    """Place the results of each source below `out` as the source is below `base`."""
    images: dict[Path, str] = {}
    for source in sources:
        target = out / _place(source).relative_to(base).with_suffix("")
        if (other := images.setdefault(target, source)) != source:
            raise DataError(
                f"this and {mask(other)} would both write {target}_ids.png; rename one of them.", source=mask(source)
            )
    return images


def _place(source: str) -> PurePosixPath:
    """Return the path of a source in one tree of all servers and disks."""
    if not is_url(source):
        return PurePosixPath(os.path.abspath(source))  # noqa: PTH100 (a link keeps its name)
    parts = urlsplit(source)
    return PurePosixPath("/", os.path.normpath(f"/{parts.netloc}{unquote(parts.path)}").lstrip("/"))
