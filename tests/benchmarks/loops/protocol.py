"""How a training loop is timed from inside: it calls a function after each step, which answers the coordinator there.

So a loop stays the loop that a user would write, in the main thread, and whatever framework calls it. The requests are
lines of JSON, as for the loaders of `tests.benchmarks.peers`.
"""

import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import psutil
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.benchmarks.loops.trace import split_of
from tests.benchmarks.peers.protocol import failure, installed, replies

Item = TypeVar("Item")

ReadLoss = Callable[[], float]
"""Waits for the device and gives the loss of a step (ours: the mean since it was last called)."""

AfterStep = Callable[[ReadLoss], None]
"""To be called by a loop after each of its steps."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What a loop is asked to train; the same for all."""

    pictures: str
    """Folder with images/NAME.jpg and masks/NAME.png (class indices)."""
    shards: str
    """The same pictures as our shards."""
    work: str
    """Folder for what a loop writes."""
    height: int
    width: int
    """Of the random crop, in pixels."""
    batch_size: int
    num_classes: int
    widths: list[int]
    """Of the U-Net's levels."""
    precision: str
    """fp32, bf16 or fp16."""
    num_workers: int
    lr: float
    """Of AdamW, constant."""
    on_device: bool = False
    """Take the same few batches from the device's memory again and again: the loop without its data path."""
    seed: int = 0

    @property
    def autocast_dtype(self) -> torch.dtype:
        """Of the forward pass."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def device(self) -> torch.device:
        """The GPU, if there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class EndedError(Exception):
    """The coordinator wants no more; leaves the loop."""


class Answers:
    """Called after each step: answers what was asked, and returns when another step is needed for that."""

    def __init__(self, job: TrainJob, tell: Callable[[Any], None], packages: Iterable[str]) -> None:
        self.job, self.tell, self.packages = job, tell, tuple(packages)
        self._turns = self._answer()
        next(self._turns)

    def __call__(self, read_loss: ReadLoss) -> None:
        """One more step is done."""
        self._turns.send(read_loss)

    def _answer(self) -> Generator[None, ReadLoss, None]:
        yield
        wait_for_device()
        self.tell({"first_step_s": time.time() - psutil.Process().create_time()})
        for line in sys.stdin:
            request = json.loads(line)
            reply = yield from getattr(self, request.pop("do"))(**request)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # The others share the device's memory.
            self.tell(reply)
        raise EndedError

    def check(self, steps: int) -> Generator[None, ReadLoss, dict[str, float]]:
        """Mean loss of the last fifth of so many steps."""
        last = max(1, steps // 5)
        losses = []
        for number in range(steps):
            read_loss = yield
            if number >= steps - last - 1:
                losses.append(read_loss())
        return {"loss": sum(losses[-last:]) / last}

    def time(self, seconds: float) -> Generator[None, ReadLoss, dict[str, float]]:
        """Samples, seconds and this process's CPU seconds of one round that lasts at least `seconds`."""
        yield from self._lead()
        began, cpu_began = time.perf_counter(), time.process_time()
        steps = 0
        while steps == 0 or time.perf_counter() - began < seconds:
            yield
            steps += 1
        wait_for_device()
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        return {"samples": steps * self.job.batch_size, "seconds": elapsed, "cpu_seconds": cpu}

    def split(self, steps: int) -> Generator[None, ReadLoss, dict[str, float]]:
        """Milliseconds per step by part, from a profile of so many steps; see `split_of`."""
        yield from self._lead()
        has_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
        with TemporaryDirectory(prefix="unetdist-") as folder:
            file = Path(folder, "trace.json")
            with profile(activities=activities) as profiler:
                began = time.perf_counter()
                for _ in range(steps):
                    yield
                wait_for_device()
                elapsed = time.perf_counter() - began
            profiler.export_chrome_trace(str(file))
            events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
        return {
            part: 1000 * value / steps for part, value in split_of(events, elapsed, on_gpu=has_gpu).items()
        }

    def syncs(self, steps: int) -> Generator[None, ReadLoss, dict[str, float | None]]:
        """How often per step the host waits for the GPU, as torch counts it; None without a GPU."""
        if not torch.cuda.is_available():
            return {"syncs": None}
        yield from self._lead()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(steps):
                yield
            torch.cuda.set_sync_debug_mode("default")
        return {"syncs": sum("synchroniz" in str(warning.message) for warning in caught) / steps}

    def facts(self) -> Generator[None, ReadLoss, dict[str, Any]]:
        """Peak memory in GB, of the device or else of this process, and versions."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_of_process()
        return {"peak_gb": peak / 1e9, "versions": installed(*self.packages)()}
        yield  # A generator, as its neighbours are.

    def _lead(self) -> Generator[None, ReadLoss, None]:
        """Steps before the clock starts: what the workers prepared ahead is not the loop's speed."""
        for _ in range(3 if self.job.on_device else 3 + PREFETCH * self.job.num_workers):
            yield
        wait_for_device()


PREFETCH = 5
"""Batches that a loader process prepares at most while the loop rests (ours: data.prefetch, and one in its hands)."""


def peak_of_process() -> int:
    """Most bytes of memory that this process ever had; getrusage would count the one that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def wait_for_device() -> None:
    """Until the GPU, if there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def waited(batches: Iterable[Item]) -> Iterator[Item]:
    """The same batches, with the wait for each as a range of the profile."""
    iterator = iter(batches)
    while True:
        with record_function("step: data"):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def serve(train: Callable[[TrainJob, AfterStep], object], *packages: str) -> None:
    """Wait for `open`, train, and answer after each step until standard input ends.

    `packages`: whose versions are told.
    """
    with replies() as tell:
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)
        assert request.pop("do") == "open"
        job = TrainJob(**request)
        try:
            train(job, Answers(job, tell, packages))
        except EndedError:
            pass
        except Exception as error:
            tell(failure(error))
