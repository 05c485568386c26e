"""Locks on files and folders. The kernel releases them when the process dies, however it dies."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_S = 0.1

# Descriptors of this process. A forked child closes them because it may outlive its parent.
_held: set[int] = set()


class HeldError(OSError):
    """Another process holds the lock; `holder` says which, if it left a note."""

    def __init__(self, holder: str) -> None:
        super().__init__(errno.EWOULDBLOCK, f"held by {holder}")
        self.holder = holder


@contextmanager
def hold(
    path: Path, *, is_shared: bool = False, wait_s: float = 0.0, tell: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold the lock on an existing file or folder. On a file system without locks this does nothing.

    A file notes its holder, unless the lock is shared. `tell` is called once with the holder, before the wait.
    `HeldError` if another process still holds the lock after `wait_s`.
    """
    # NFS grants an exclusive lock only to a process that may write to the file.
    may_write = not is_shared and not path.is_dir()
    descriptor = os.open(path, os.O_RDWR if may_write else os.O_RDONLY)
    _held.add(descriptor)
    try:
        deadline = time.monotonic() + wait_s
        while not _lock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX):
            holder = _holder(path)
            if time.monotonic() >= deadline:
                raise HeldError(holder)
            if tell is not None:
                tell(holder)
                tell = None
            time.sleep(POLL_S)
        if may_write:
            with suppress(OSError):  # on a full disk the lock holds without its note
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                note = f"process {os.getpid()} on {platform.node()} since {since}\n".encode()
                os.pwrite(descriptor, note, 0)
                os.ftruncate(descriptor, len(note))
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _holder(path: Path) -> str:
    note = ""
    with suppress(OSError, UnicodeDecodeError):
        note = path.read_text(encoding="utf-8").strip()
    return note or "another process"


def _release_all() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release_all)
