"""Every picture of a source: read ahead and written behind by threads, shared by processes, continued."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unetdist.cli.logs import logger, progress
from unetdist.distributed.collectives import (
    World,
    all_reduce_min,
    all_reduce_sum,
    any_rank,
    barrier,
    broadcast,
    gather_to,
    is_out_of_memory,
)
from unetdist.errors import ConfigError, DataError
from unetdist.model.inference import WHOLE_IMAGE, InferenceConfig
from unetdist.model.saved_model import SavedModel
from unetdist.predict.image import Item, Picture, predict_images
from unetdist.predict.outputs import Outputs
from unetdist.predict.recipe import check_recipe
from unetdist.predict.sources import Source, open_source

# Pictures per thread that are read, and results that wait to be written.
AHEAD = 4

# Pictures of each process after which all wait for the slowest, long before a connection would time out.
MEET_EVERY = 256

NO_MEMORY = "needs more memory than there is; predict it in parts, with --window 512 512."


@dataclass(frozen=True)
class Failure:
    """A picture that gave no result, and why."""

    source: str
    reason: str


def predict_files(
    saved: SavedModel,
    source: str | Path | Sequence[str],
    out: Path,
    *,
    outputs: Outputs | None = None,
    inference: InferenceConfig = WHOLE_IMAGE,
    batch_size: int = 1,
    num_workers: int = 2,
    every: int = 1,
    overwrite: bool = False,
    world: World | None = None,
) -> list[Failure]:
    """Collective. Write the classes of every picture of `source` below `out`, shared by the processes of `world`.

    Results have the size and the orientation in which a viewer shows the image. Pictures whose results are all there
    are skipped.

    Args:
        saved: the model, on the device of `world`.
        source: an image, a folder, a pattern, a list, shards or a video.
        out: folder.
        outputs: which files.
        inference: windows, flips, scales.
        batch_size: images of equal size per forward pass; a partial batch is filled up.
        num_workers: threads that read, and as many that write.
        every: of a video, each so manieth frame.
        overwrite: predict what is there already again.
        world: this process among the others.

    Returns:
        The pictures that could not be read, of all processes.

    Raises:
        ConfigError: results of another model or other settings are there.
        DataError: see `open_source` and `Outputs.write`.
    """
    outputs, world = outputs or Outputs(), world or World()
    for name, value in (("--batch-size", batch_size), ("--num-workers", num_workers)):
        if value < 1:
            raise ConfigError(f"{name} ({value}) must be 1 or more; use the default.")
    pictures = open_source(source, out, every=every, image_range=saved.image_range)
    _check_alike(pictures, world)
    check_recipe(saved, inference, out, overwrite=overwrite, world=world)
    share = _Share(pictures, outputs, world, overwrite=overwrite)
    failures = []
    with progress("predicting", share.size, enabled=world.is_main) as bar, _Writer(num_workers) as writer:
        loaded = _ahead(share, saved.model.config.in_channels, num_workers)
        for group in _groups(loaded, batch_size):
            if isinstance(group, Failure):
                failures.append(group)
                bar.advance(1, Path(group.source).name)
                continue
            try:
                predictions = predict_images(
                    saved,
                    [picture.pixels for _, picture in group],
                    batch_size=batch_size,
                    inference=inference,
                    device=world.device,
                    with_probabilities=outputs.probabilities,
                    resized_to=pictures.resize,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failures += [Failure(item.name, NO_MEMORY) for item, _ in group]
                bar.advance(len(group), group[-1][0].target.name)
                continue
            for (item, picture), prediction in zip(group, predictions, strict=True):
                writer.put(outputs.write, item.target, picture, prediction, saved.palette)
            bar.advance(len(group), group[-1][0].target.name)
    failures = _gathered(failures, world)
    counts = torch.tensor([share.num_mine, share.num_skipped], dtype=torch.int64, device=world.device)
    total, skipped = all_reduce_sum(counts).tolist()
    # Gloo's threads hold the tensors of the last collective; freed while Python ends, they would end the process.
    barrier()
    _tell(total, skipped, failures, out, world)
    return failures


class _Share:
    """The pictures of this process that are still to be predicted: every so manieth, as there are processes."""

    def __init__(self, source: Source, outputs: Outputs, world: World, *, overwrite: bool) -> None:
        self._source, self._outputs, self._world, self._overwrite = source, outputs, world, overwrite
        total = source.total
        self.size = None if total is None else len(range(world.rank, total, world.world_size))
        self.num_mine = self.num_skipped = 0

    def __iter__(self) -> Iterator[Item]:
        for number, item in enumerate(self._source.items(self._is_wanted)):
            if number % (MEET_EVERY * self._world.world_size) == 0:
                barrier()
            is_mine = number % self._world.world_size == self._world.rank
            self.num_mine += is_mine
            if item is not None:
                yield item
            else:
                self.num_skipped += is_mine

    def _is_wanted(self, number: int, target: Path | None) -> bool:
        if number % self._world.world_size != self._world.rank:
            return False
        return target is None or self._overwrite or not self._outputs.are_there(target)


class _Writer:
    """Threads that write results; what one of them cannot write is raised where the next is handed over."""

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, "write")
        self._waiting: deque[Future[None]] = deque()
        self._most = AHEAD * num_threads

    def put(self, write: Any, *args: Any) -> None:
        self._waiting.append(self._threads.submit(write, *args))
        while len(self._waiting) > self._most or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for each in self._waiting:
                each.result()


def _ahead(items: Iterable[Item], channels: int, num_threads: int) -> Iterator[tuple[Item, Picture | Failure]]:
    """The pictures, in their order, while threads read those that follow."""
    threads = ThreadPoolExecutor(num_threads, "read")
    waiting: deque[tuple[Item, Future[Picture | Failure]]] = deque()
    try:
        for item in items:
            waiting.append((item, threads.submit(_load, item, channels)))
            if len(waiting) > AHEAD * num_threads:
                first, read = waiting.popleft()
                yield first, read.result()
        for item, read in waiting:
            yield item, read.result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _load(item: Item, channels: int) -> Picture | Failure:
    try:
        return item.load(channels)
    except DataError as error:
        return Failure(item.name, str(error).removeprefix(f"{item.name}: "))
    except MemoryError:
        return Failure(item.name, NO_MEMORY)


def _groups(
    loaded: Iterable[tuple[Item, Picture | Failure]], batch_size: int
) -> Iterator[list[tuple[Item, Picture]] | Failure]:
    """Neighbours of equal size, at most `batch_size` at once, and failures."""
    group: list[tuple[Item, Picture]] = []
    for item, picture in loaded:
        if isinstance(picture, Failure):
            yield picture
            continue
        if group and (len(group) == batch_size or group[0][1].pixels.shape != picture.pixels.shape):
            yield group
            group = []
        group.append((item, picture))
    if group:
        yield group


def _check_alike(source: Source, world: World) -> None:
    is_alike = broadcast(source.fingerprint, world.device) == source.fingerprint
    if any_rank(not is_alike, world.device):
        raise DataError(
            "the processes see different pictures in --input; wait until nothing is added to it, and use storage that "
            "all of them share."
        )


def _gathered(failures: list[Failure], world: World) -> list[Failure]:
    """Those of all processes, on each."""
    text = json.dumps([[failure.source, failure.reason] for failure in failures]).encode()
    size = -all_reduce_min(-len(text), world.device)
    mine = torch.frombuffer(bytearray(text.ljust(size)), dtype=torch.uint8).clone().to(world.device)
    parts = [json.loads(bytes(part.tolist())) for part in gather_to(0, mine)]
    together = broadcast([failure for part in parts for failure in part], world.device)
    return [Failure(*failure) for failure in together]


def _tell(total: int, skipped: int, failures: list[Failure], out: Path, world: World) -> None:
    if not world.is_main:
        return
    if skipped:
        logger.info("%d of %d were there already and are kept (--overwrite predicts them anew)", skipped, total)
    logger.info("%d of %d images predicted, results in %s", total - skipped - len(failures), total, out)
    for failure in failures:
        logger.error("%s: %s", failure.source, failure.reason)
    if failures:
        logger.error("%d of %d images failed (reasons above)", len(failures), total)
