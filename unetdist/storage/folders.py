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
from unetdist.storage.remote import is_url


@dataclass(frozen=True)
class Folder:
    """Files by name ("a.tar", ".ingest/plan.json") in a folder; picklable, and safe to use after a fork.

    A name that is a URL is that file, whatever the folder. A missing file is a `FileNotFoundError`. A server that does
    not answer is tried again for `remote.RETRY_S`; then follows a `DataError`.
    """

    location: str
    """Path or URL."""

    def __str__(self) -> str:
        return self.location if self.is_local else mask(self.location)

    @property
    def is_local(self) -> bool:
        """Whether this is a plain path: read in place, never cached."""
        return not is_url(self.location)

    def where(self, name: str) -> str:
        """Path or URL of a file."""
        return remote.join(self.location, name) if is_url(self.location) or is_url(name) else str(self.path(name))

    def path(self, name: str) -> Path:
        """Path of a file in a local folder."""
        if not self.is_local:
            raise DataError("this needs a local folder; copy the data set to one.", source=self)
        return Path(self.location) / name

    def is_in_place(self, name: str) -> bool:
        """Whether the file is on this machine's file systems, and needs no download."""
        return not is_url(self.where(name))

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files directly in the folder that end in `suffix`; empty if there is no folder."""
        if not self.is_local:
            return [name for name in remote.names_in(self.location) if name.endswith(suffix)]
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.location) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())
        return []

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if the server does not say."""
        where = self.where(name)
        return remote.size_of(where) if is_url(where) else Path(where).stat().st_size

    def read(self, name: str) -> bytes:
        """The whole file."""
        where = self.where(name)
        return remote.read(where) if is_url(where) else read_file(where)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a file behind a URL from `start` on; fewer only at its end."""
        return remote.read_range(self.where(name), start, size)

    def download(self, name: str, file: IO[bytes], *, most: int = remote.UNLIMITED) -> None:
        """Write the file to the empty `file`; one behind a URL stops at `most` bytes."""
        where = self.where(name)
        if is_url(where):
            remote.download(where, file, most=most)
        else:
            with open_file(where) as source:
                shutil.copyfileobj(source, file)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that appears whole or not at all."""
        if self.is_local:
            with write_atomic(self.path(name)) as file:
                file.write(data)
        else:
            remote.write(self.where(name), data)

    def upload(self, name: str, local: Path) -> None:
        """Copy a local file to `name`."""
        if self.is_local:
            with write_atomic(self.path(name)) as file, open(local, "rb") as source:
                shutil.copyfileobj(source, file)
        else:
            remote.upload(self.where(name), local)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        if self.is_local:
            self.path(name).unlink(missing_ok=True)
        else:
            remote.remove(self.where(name))


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
    return Folder(text)
