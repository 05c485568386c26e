"""The machine under a process: processor, cores, memory, and what the C library does with freed memory."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Literal

import psutil

MixedPrecision = Literal["no", "fp16", "bf16"]
"""Number format of the forward pass."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc; see mallopt(3)
_DEFAULT_MMAP_MAX = 65_536
_UNLIMITED = -1


def cpu_model() -> str:
    """Name of the processor, or its architecture where the system has no name for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use; in a container or batch job, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory of this machine, or of the container if that has less."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


# glibc's default returns large arrays to the system after each use, which hands them out again page by page, zeroed.
# A U-Net on a CPU allocates and frees its activations in every step, and spends a quarter to a half of its time on
# that; decoding an image, a tenth.


def keep_all_freed() -> None:
    """Let this process reuse all memory that it frees; what it holds stays at its peak."""
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, _UNLIMITED)


def keep_freed(num_bytes: int, *, largest: int) -> None:
    """Let this process keep up to `num_bytes` that it frees, from arrays of at most `largest` bytes (up to 32 MiB).

    This also undoes `keep_all_freed` of the process that this one was forked from.
    """
    _mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
    _mallopt(_M_MMAP_THRESHOLD, largest)
    _mallopt(_M_TRIM_THRESHOLD, num_bytes)


def _mallopt(name: int, value: int) -> None:
    # other C libraries have no mallopt
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(name, value)
