"""Local files that exist whole or not at all, and locks that the kernel releases when their process dies."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".partial"

# Seconds between two attempts to lock a file.
POLL_S = 0.1

# Longer than any note of a lock's holder, so that each replaces the one before it.
_NOTE_BYTES = 200

# Descriptors of this process's locks. A forked child closes them because it may outlive its parent.
_held: set[int] = set()


@contextmanager
def write_atomic(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file next to `path` for writing; it is renamed to `path` once it is complete and on disk.

    If the body raises, nothing is left behind and a former file at `path` is unchanged. Only its owner can read a
    `private` file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: threads share it, and machines that share a file system may have equal ones.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with open(partial, "wb", opener=_open_private if private else None) as file:
            yield file
            file.flush()
            # Otherwise a crash could leave the new name with no content.
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(target)  # a full disk does not name the file
        raise
    sync_folder(target.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> None:
    """Write `text` atomically."""
    with write_atomic(path, private=private) as file:
        file.write(_encode(text))


def write_json(path: str | os.PathLike[str], value: Any, *, private: bool = False) -> None:
    """Write `value` atomically as indented JSON, which has no NaN."""
    write_text(path, _as_json(value), private=private)


def write_json_in_place(path: str | os.PathLike[str], value: Any) -> None:
    """Overwrite an existing file with JSON: not atomic, but possible on a full disk."""
    text = _encode(_as_json(value))
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _encode(text: str) -> bytes:
    # Names that are not UTF-8 hold surrogates, which are escaped as in JSON.
    return text.encode("utf-8", "backslashreplace")


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; `OSError` for anything else."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    return file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; `OSError` for anything else."""
    with open_file(path) as file:
        return file.read()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    # Otherwise opening a named pipe waits for a writer.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames inside `folder` durable: the folder records them, not the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class HeldError(OSError):
    """Another process holds the lock."""


@contextmanager
def hold_lock(
    path: Path, *, is_shared: bool = False, wait_s: float = 0.0, tell: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold the lock on an existing file or folder. On a file system without locks this does nothing.

    A file notes its holder, unless the lock is shared. `tell` is called once with the note, before the wait.
    `HeldError`, which says the note too, if another process still holds the lock after `wait_s`.
    """
    # NFS grants an exclusive lock only to a process that may write to the file.
    may_write = not is_shared and not path.is_dir()
    descriptor = os.open(path, os.O_RDWR if may_write else os.O_RDONLY)
    _held.add(descriptor)
    try:
        deadline = time.monotonic() + wait_s
        while not _lock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX):
            note = os.pread(descriptor, _NOTE_BYTES, 0).decode(errors="replace").strip() if may_write else ""
            if time.monotonic() >= deadline:
                raise HeldError(note or "another process")
            if tell is not None:
                tell(note or "another process")
                tell = None
            time.sleep(POLL_S)
        if may_write:
            with suppress(OSError):  # on a full disk the lock holds without its note
                note = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                os.pwrite(descriptor, note.encode().ljust(_NOTE_BYTES), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, (BlockingIOError, PermissionError))
    return True


def _release_all() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release_all)
