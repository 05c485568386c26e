"""Files and folders that one process at a time holds; the kernel releases them when it dies, however it dies."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK_EVERY_S = 0.1

_held: set[int] = set()
"""Descriptors of this process; a forked child closes them because it may outlive its parent."""


class HeldError(OSError):
    """Another process holds the lock; `holder` says which, where it left word."""

    def __init__(self, holder: str) -> None:
        super().__init__(errno.EWOULDBLOCK, f"held by {holder}")
        self.holder = holder


@contextmanager
def hold(
    path: Path, *, is_shared: bool = False, wait_s: float = 0.0, tell: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold the lock on a file or a folder, which are there already.

    Where the file system has no locks, the user keeps processes apart.

    Args:
        path: a file that may be written to, where the lock is not shared: it then says who holds it.
        is_shared: keep out only those that want it for themselves.
        wait_s: how long to wait for another process to end.
        tell: called once with the holder before the wait.

    Raises:
        HeldError: another process holds it still.
    """
    # NFS locks a file for one process alone only if that process may write to it.
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
            time.sleep(LOOK_EVERY_S)
        if may_write:
            with suppress(OSError):  # a full disk: the lock holds without its note
                _leave_word(descriptor)
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


def _leave_word(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    note = f"process {os.getpid()} on {platform.node()} since {since}\n".encode()
    os.pwrite(descriptor, note, 0)
    os.ftruncate(descriptor, len(note))


def _holder(path: Path) -> str:
    note = ""
    with suppress(OSError, UnicodeDecodeError):
        note = path.read_text(encoding="utf-8").strip()
    return note or "another process"


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
