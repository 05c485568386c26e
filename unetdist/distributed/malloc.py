"""What the C library does with freed memory: by default it gives large arrays back to the system after every use.

The system hands them out again page by page, zeroed. Training a U-Net on a CPU makes and frees its activations at
every step, and so spends a quarter to a half of the time there; decoding a picture, a tenth.
"""

import ctypes
import sys
from pathlib import Path

import psutil

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Names of malloc.h (glibc); see mallopt(3)."""
_DEFAULT_MMAP_MAX = 65_536
_UNLIMITED = -1


def keep_all_freed() -> None:
    """Let this process keep all that it frees, for its next arrays; its memory stays at what it needed at most."""
    _set(_M_MMAP_MAX, 0)
    _set(_M_TRIM_THRESHOLD, _UNLIMITED)


def keep_freed(num_bytes: int, *, largest: int) -> None:
    """Let this process keep up to `num_bytes` that it frees, of arrays of at most `largest` bytes.

    glibc admits no `largest` above 32 MiB. A process that was forked from one that keeps all forgets that.
    """
    _set(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
    _set(_M_MMAP_THRESHOLD, largest)
    _set(_M_TRIM_THRESHOLD, num_bytes)


def _set(name: int, value: int) -> None:
    """Nothing where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(name, value)


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this machine has left, or the container, if that allows less."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))
