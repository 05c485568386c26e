"""Folders of files at a path or behind a URL, with the same methods."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unetdist.cli.credentials import mask
from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.files import open_file, read_file, write_atomic


@dataclass(frozen=True)
class Folder:
    """Files by name ("a.tar", ".ingest/plan.json") in a folder behind a URL; picklable, and safe to use after a fork.

    A name that is a URL is that file, whatever the folder. A missing file is a `FileNotFoundError`. A server that does
    not answer is tried again for `retries.RETRY_S`; then follows a `DataError`.
    """

    location: str
    is_local = False
    """Whether this is a plain path: read in place, never cached."""

    def __str__(self) -> str:
        return mask(self.location)

    def where(self, name: str) -> str:
        """Path or URL of a file."""
        return remote.join(self.location, name)

    def path(self, name: str) -> Path:
        """Path of a file in a local folder."""
        raise DataError("this needs a local folder; copy the data set to one.", source=self)

    def is_in_place(self, name: str) -> bool:
        """Whether the file is on this machine's file systems, and needs no download."""
        return self.is_local and not remote.is_url(name)

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files directly in the folder that end in `suffix`; empty if there is no folder."""
        return [name for name in remote.names_in(self.location) if name.endswith(suffix)]

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if the server does not say."""
        return remote.size_of(self.where(name))

    def read(self, name: str) -> bytes:
        """The whole file."""
        return remote.read(self.where(name))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer only at the end of the file."""
        return remote.read_range(self.where(name), start, size)

    def download(self, name: str, file: IO[bytes], *, most: int = remote.UNLIMITED) -> None:
        """Write the file to `file`, from its beginning; stop at `most` bytes."""
        remote.download(self.where(name), file, most=most)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that appears whole or not at all."""
        remote.write(self.where(name), data)

    def upload(self, name: str, local: Path) -> None:
        """Copy a local file to `name`."""
        remote.upload(self.where(name), local)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        remote.remove(self.where(name))


class LocalFolder(Folder):
    """Files at a path, read and written in place."""

    is_local = True

    def __str__(self) -> str:
        return self.location

    def where(self, name: str) -> str:
        """Path of a file, or its URL."""
        return name if remote.is_url(name) else str(self.path(name))

    def path(self, name: str) -> Path:
        """Path of a file."""
        return Path(self.location) / name

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files directly in the folder that end in `suffix`; empty if there is no folder."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.location) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
        return []

    def size(self, name: str) -> int | None:
        """Bytes of a file."""
        return self.path(name).stat().st_size if self.is_in_place(name) else super().size(name)

    def read(self, name: str) -> bytes:
        """The whole file."""
        return read_file(self.path(name)) if self.is_in_place(name) else super().read(name)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer only at the end of the file."""
        if not self.is_in_place(name):
            return super().read_range(name, start, size)
        with open_file(self.path(name)) as file:
            return os.pread(file.fileno(), size, start)

    def download(self, name: str, file: IO[bytes], *, most: int = remote.UNLIMITED) -> None:
        """Copy the file to `file`; a URL stops at `most` bytes."""
        if not self.is_in_place(name):
            super().download(name, file, most=most)
            return
        with open_file(self.path(name)) as source:
            file.seek(0)
            shutil.copyfileobj(source, file)
            file.truncate()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that appears whole or not at all."""
        with write_atomic(self.path(name)) as file:
            file.write(data)

    def upload(self, name: str, local: Path) -> None:
        """Copy a local file to `name`."""
        with write_atomic(self.path(name)) as file, open(local, "rb") as source:
            shutil.copyfileobj(source, file)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        self.path(name).unlink(missing_ok=True)


def open_folder(location: str | Path | Folder) -> Folder:
    """The folder at a path or URL; `ConfigError` for a URL that is not supported."""
    if isinstance(location, Folder):
        return location
    text = str(location)
    if text.startswith("pipe:"):
        raise ConfigError(
            f"{mask(text)}: commands are no longer run; mount that folder, or give a URL, such as s3:// or https://."
        )
    if problem := remote.refusal(text):
        raise ConfigError(f"{mask(text)}: {problem}")
    return Folder(text) if remote.is_url(text) else LocalFolder(text)
