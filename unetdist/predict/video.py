"""The frames of a video, as pictures."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import cv2

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, DataError
from unetdist.predict.image import Item, Picture, Wanted
from unetdist.storage.remote import is_url

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

# From OpenCV's order to the channels of a model.
_COLORS = {1: cv2.COLOR_BGR2GRAY, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGR2RGBA}


class Video:
    """Frame 123 of NAME.mp4 is NAME_000123, turned upright as players do.

    It is read from its beginning: a jump would miss the frame in many formats.
    """

    resize = None

    def __init__(self, location: str, out: Path, *, every: int = 1) -> None:
        """`every`: each so manieth frame, from the first on.

        Raises:
            ConfigError: `every` below 1.
            DataError: not a video that OpenCV can read.
        """
        if every < 1:
            raise ConfigError(f"--every ({every}) must be 1 or more; use 10 for each tenth frame.")
        self._location, self._every = location, every
        stem = PurePosixPath(urlsplit(location).path).stem if is_url(location) else Path(location).stem
        self._target = out / stem
        video = self._open()
        self._told = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        self.total = -(-self._told // every) if self._told > 0 else None
        self.fingerprint = f"{location} {self._told} {every}"

    def items(self, wanted: Wanted) -> Iterator[Item | None]:
        """In their order."""
        video = self._open()
        try:
            frame = 0
            while video.grab():
                if frame % self._every == 0:
                    target = self._target.with_name(f"{self._target.name}_{frame:06d}")
                    yield self._item(video, frame, target) if wanted(frame // self._every, target) else None
                frame += 1
        finally:
            video.release()
        if frame < self._told:
            # A guess of some containers, so no error.
            logger.warning("%s ended after %d of %d frames", mask(self._location), frame, self._told)

    def _item(self, video: Any, frame: int, target: Path) -> Item:
        is_whole, pixels = video.retrieve()
        return Item(f"{mask(self._location)}, frame {frame}", target, _loader(is_whole, pixels))

    def _open(self) -> Any:
        # GStreamer runs what a name says, and FFmpeg follows it where no folder stands before it.
        location = self._location if is_url(self._location) else os.path.abspath(self._location)  # noqa: PTH100
        video = cv2.VideoCapture(location, cv2.CAP_FFMPEG)
        if not video.isOpened():
            raise DataError(
                "cannot be read as a video; convert it to MP4 (H.264), or give --input a folder of its frames.",
                source=mask(self._location),
            )
        return video


def _loader(is_whole: bool, pixels: Any) -> Callable[[int], Picture]:
    def load(channels: int) -> Picture:
        if not is_whole:
            raise DataError("the frame cannot be decoded; convert the video again.")
        return Picture(cv2.cvtColor(pixels, _COLORS[channels]).reshape(*pixels.shape[:2], channels))

    return load
