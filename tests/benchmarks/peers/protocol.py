"""How a contender talks to the coordinator: a line of JSON in, a line of JSON out, nothing done in between.

A contender is a process of its own for the whole run, on one core and with one thread. It writes its own format from
the same pictures, then waits on its standard input: while it waits it costs nothing, so the one whose turn it is has
the core to itself.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Batches = Iterator[tuple[Any, Any]]
"""Endless pairs of images and masks, as tensors or arrays."""

LEAD_BATCHES = 3
"""Taken before the clock of a round starts: what a contender prepared ahead while it waited is not its speed."""


UNFILTERED_MASKS = "masks_unfiltered"
"""Folder of the same masks as PNGs whose rows have no filter, as our own shards hold them: quicker for everybody."""


@dataclass(frozen=True)
class Job:
    """What a contender is asked to load."""

    pictures: str
    """Folder with images/NAME.jpg, masks/NAME.png (class indices, grey, as PIL saves them) and Labels.txt."""
    work: str
    """Folder for this contender's own format of these pictures; kept for the next run."""
    crop: int
    """Side of the square crop in pixels."""
    batch_size: int
    seed: int = 0
    num_workers: int = 0
    """Loader processes; the contenders that are compared have none: one core is one core."""
    lead_batches: int = LEAD_BATCHES

    def pairs(self, masks_folder: str = "masks") -> list[tuple[str, str]]:
        """Paths of each image and its mask, by name."""
        images = sorted(Path(self.pictures, "images").glob("*.jpg"))
        masks = Path(self.pictures, masks_folder)
        return [(str(image), str(masks / f"{image.stem}.png")) for image in images]

    def format_once(self, name: str, write: Callable[[str], object]) -> str:
        """Folder with the pictures in a contender's format; `write` fills it, unless a former run did."""
        folder = Path(self.work, name)
        done = folder / ".complete"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(str(folder))
            done.touch()
        return str(folder)


class Rounds:
    """The running loader of one job, and the stopwatch beside it."""

    def __init__(self, job: Job, batches: Batches) -> None:
        self.job = job
        self._batches = batches

    def time(self, seconds: float) -> dict[str, float]:
        """Samples, seconds and this process's CPU seconds of one round that lasts at least `seconds`."""
        for _ in islice(self._batches, self.job.lead_batches):
            pass
        began, cpu_began = time.perf_counter(), time.process_time()
        num_batches, elapsed = 0, 0.0
        while num_batches == 0 or elapsed < seconds:
            next(self._batches)
            num_batches += 1
            elapsed = time.perf_counter() - began
        cpu = time.process_time() - cpu_began
        return {"samples": num_batches * self.job.batch_size, "seconds": elapsed, "cpu_seconds": cpu}

    def save(self, path: str, count: int) -> dict[str, float]:
        """Write `count` batches to an .npz file, for the coordinator to look at."""
        pairs = [[np.array(part) for part in next(self._batches)] for _ in range(count)]
        images, masks = (np.stack(parts) for parts in zip(*pairs, strict=True))
        np.savez(path, images=images, masks=masks)
        return {"batches": count}


def serve(
    batches: Callable[[Job], Batches],
    versions: Callable[[], dict[str, str]],
    extras: Mapping[str, Callable[..., Any]] | None = None,
) -> None:
    """Answer requests until standard input ends: `open`, `time`, `save`, `versions`, and those of `extras`.

    `extras` are called with the current job and the request's arguments.
    """
    rounds: Rounds | None = None

    def answer(do: str, arguments: dict[str, Any]) -> Any:
        nonlocal rounds
        if do == "open":
            job = Job(**arguments)
            rounds = Rounds(job, batches(job))
            return {}
        if do == "versions":
            return versions()
        assert rounds is not None
        if extras and do in extras:
            return extras[do](rounds.job, **arguments)
        return getattr(rounds, do)(**arguments)

    with replies() as tell:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                tell(answer(request.pop("do"), request))
            except Exception as error:
                tell(failure(error))


@contextlib.contextmanager
def replies() -> Iterator[Callable[[Any], None]]:
    """A function that sends one reply; whatever a library prints goes to the log, not between the replies."""
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)
        yield lambda reply: print(json.dumps(reply), file=channel)


def failure(error: Exception) -> dict[str, Any]:
    """The reply that tells an error, whose traceback goes to the log; with the package that is missing, if one is."""
    traceback.print_exception(error)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {"error": f"{type(error).__name__}: {error}", "missing": missing}


def installed(*packages: str) -> Callable[[], dict[str, str]]:
    """A function that gives the version of each package that is there."""

    def versions() -> dict[str, str]:
        found = {}
        for package in packages:
            with contextlib.suppress(PackageNotFoundError):  # Some go by several names.
                found[package] = version(package)
        return found

    return versions


def window(shape: tuple[int, int], crop: int, rng: np.random.Generator) -> tuple[int, int, bool]:
    """Top, left and whether to flip, of a random crop of a picture of `shape` (height, width)."""
    height, width = shape
    top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    return top, left, bool(rng.random() < 0.5)


def crop_pil(image: Any, mask: Any, crop: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """The same random crop and flip of two PIL pictures, as uint8 tensors (H, W, 3) and (H, W).

    As torchvision's reference for segmentation does it (references/segmentation/transforms.py: RandomCrop,
    RandomHorizontalFlip, PILToTensor), but without the copies to NCHW and to int64.
    """
    import torch
    from PIL import Image

    top, left, flip = window((image.height, image.width), crop, rng)
    box = (left, top, left + crop, top + crop)
    image, mask = image.crop(box), mask.crop(box)
    if flip:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    return torch.from_numpy(_array(image)), torch.from_numpy(_array(mask))


def _array(picture: Any) -> npt.NDArray[np.uint8]:
    return np.array(picture)  # A copy: tensors must be writable.


def forever(loader: Any) -> Batches:
    """Epoch after epoch of a loader."""
    while True:
        yield from loader
