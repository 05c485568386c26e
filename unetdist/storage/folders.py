"""Folders of files, wherever they are: a path or a URL of fsspec."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from unetdist.cli.credentials import mask
from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.files import open_file, read_file, write_atomic

CHUNK = 2**20
"""Bytes of one read from a local file."""


class Folder(Protocol):
    """A place that holds files by name ("a.tar", ".ingest/plan.json"); picklable, and safe to use after a fork.

    A name that is a URL itself is that file, whatever the folder. A missing file is `FileNotFoundError`; what cannot be
    reached is tried again for `retries.RETRY_S` and then a `DataError`.
    """

    @property
    def is_local(self) -> bool:
        """A plain path: read in place, never cached."""

    @property
    def can_range(self) -> bool:
        """Whether parts of files can be read; a server is believed to until it has shown otherwise."""

    def where(self, name: str) -> str:
        """Path or URL of a file."""

    def path(self, name: str) -> Path:
        """Path of a file in a local folder."""

    def names(self, suffix: str = "") -> list[str]:
        """Names of the files directly in the folder that end in `suffix`, sorted; none where there is no folder."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where the server does not say."""

    def read(self, name: str) -> bytes:
        """The whole file."""

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer only at the file's end."""

    def download(
        self, name: str, file: IO[bytes], *, start: int = 0, on_bytes: Callable[[bytes], object] | None = None
    ) -> None:
        """Append the bytes from `start` on to `file`, as they come; each piece is shown to `on_bytes` too."""

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Make a file that appears whole or not at all."""

    def upload(self, name: str, local: Path) -> None:
        """Make a file of the local one."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder at a path or URL; `ConfigError` where it is neither, or a URL that is not supported."""
    if not isinstance(location, (str, Path)):
        return location
    text = str(location)
    if text.startswith("pipe:"):
        raise ConfigError(
            f"{mask(text)}: commands are no longer run; mount that folder, or give a URL, such as s3:// or https://."
        )
    if problem := remote.refusal(text):
        raise ConfigError(f"{mask(text)}: {problem}")
    return _RemoteFolder(text) if remote.is_url(text) else _LocalFolder(text)


@dataclass(frozen=True)
class _RemoteFolder:
    """Files behind a URL that fsspec knows."""

    location: str

    @property
    def is_local(self) -> bool:
        return False

    @property
    def can_range(self) -> bool:
        return remote.can_range(self.location)

    def __str__(self) -> str:
        return mask(self.location)

    def where(self, name: str) -> str:
        return remote.join(self.location, name)

    def path(self, name: str) -> Path:
        raise DataError("this needs a local folder; copy the data set to one.", source=self)

    def names(self, suffix: str = "") -> list[str]:
        return [name for name in remote.names_in(self.location) if name.endswith(suffix)]

    def size(self, name: str) -> int | None:
        return remote.size_of(self.where(name))

    def read(self, name: str) -> bytes:
        return remote.read(self.where(name))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        return remote.read_range(self.where(name), start, size)

    def download(
        self, name: str, file: IO[bytes], *, start: int = 0, on_bytes: Callable[[bytes], object] | None = None
    ) -> None:
        _append(remote.pieces(self.where(name), start), file, on_bytes)

    def write(self, name: str, data: bytes | memoryview) -> None:
        remote.write(self.where(name), data)

    def upload(self, name: str, local: Path) -> None:
        remote.upload(self.where(name), local)

    def remove(self, name: str) -> None:
        remote.remove(self.where(name))


class _LocalFolder(_RemoteFolder):
    """Files at a path, read and written in place."""

    @property
    def is_local(self) -> bool:
        return True

    @property
    def can_range(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.location

    def where(self, name: str) -> str:
        return name if remote.is_url(name) else str(self.path(name))

    def path(self, name: str) -> Path:
        return Path(self.location) / name

    def names(self, suffix: str = "") -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.location) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
        return []

    def size(self, name: str) -> int | None:
        return super().size(name) if remote.is_url(name) else self.path(name).stat().st_size

    def read(self, name: str) -> bytes:
        return super().read(name) if remote.is_url(name) else read_file(self.path(name))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        if remote.is_url(name):
            return super().read_range(name, start, size)
        with open_file(self.path(name)) as file:
            return os.pread(file.fileno(), size, start)

    def download(
        self, name: str, file: IO[bytes], *, start: int = 0, on_bytes: Callable[[bytes], object] | None = None
    ) -> None:
        if remote.is_url(name):
            super().download(name, file, start=start, on_bytes=on_bytes)
            return
        with open_file(self.path(name)) as source:
            source.seek(start)
            _append(iter(lambda: source.read(CHUNK), b""), file, on_bytes)

    def write(self, name: str, data: bytes | memoryview) -> None:
        with write_atomic(self.path(name)) as file:
            file.write(data)

    def upload(self, name: str, local: Path) -> None:
        with write_atomic(self.path(name)) as file, open(local, "rb") as source:
            _append(iter(lambda: source.read(CHUNK), b""), file, None)

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)


def _append(pieces: Iterable[bytes], file: IO[bytes], on_bytes: Callable[[bytes], object] | None) -> None:
    for piece in pieces:
        file.write(piece)
        if on_bytes is not None:
            on_bytes(piece)
