"""The most memory that something needed, on the device and in the machine."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import torch

PROCESS = Path("/proc/self")
_RESETS_PEAK = "5"
"""See proc(5), clear_refs."""


class Peak:
    """Memory of this process and its children while the context lasts; numbers are there when it ends."""

    device_bytes: int = 0
    """Reserved on the GPU at the most; 0 on a CPU."""
    host_bytes: int = 0
    """Of this process at the most, and of its workers at the end. Where the kernel cannot forget a former peak: since
    the process began."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> Self:
        with suppress(OSError):
            (PROCESS / "clear_refs").write_text(_RESETS_PEAK)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.device_bytes = torch.cuda.max_memory_reserved(self._device)
        self.host_bytes = peak_of_process() + sum(map(_own_bytes, psutil.Process().children(recursive=True)))


def peak_of_process() -> int:
    """The most bytes of this process that were in memory; what it has now, where the system does not say."""
    with suppress(OSError):
        status = (PROCESS / "status").read_text()
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return 1024 * int(found[1])
    return int(psutil.Process().memory_info().rss)


def _own_bytes(child: psutil.Process) -> int:
    """What would be free without it; 0 where it has just ended."""
    with suppress(psutil.Error):
        return int(child.memory_full_info().uss)
    return 0
