"""Files that exist whole or not at all."""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def write_atomic(
    path: str | os.PathLike[str], mode: str = "wb", *, private: bool = False
) -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing; it takes the name `path` only once it is complete and on disk.

    If the body raises, nothing is left behind and a former file at `path` stays as it was.
    `mode` is "wb" or "w" (UTF-8; half characters, which names that are not UTF-8 hold, as JSON escapes them).
    A `private` file can be read by its owner alone.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: threads share it, and so do processes of several machines over one file system.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        opener = _open_private if private else None
        with open(partial, mode, encoding=encoding, errors=errors, opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)  # a full disk does not say which file it has no room for
        raise
    sync_folder(target.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write `text` atomically."""
    with write_atomic(path, "w", private=private) as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any, *, private: bool = False) -> None:
    """Write `value` atomically as indented JSON; NaN is refused, for it is no JSON."""
    write_text(path, _as_json(value), private=private)


def write_json_in_place(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON over an existing file: it needs no more disk space, but is not atomic."""
    text = _as_json(value).encode("utf-8", "backslashreplace")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; `OSError` for anything else: to open a named pipe would wait for a writer."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    return file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; `OSError` for anything else."""
    with open_file(path) as file:
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames inside `folder` durable: a rename lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
