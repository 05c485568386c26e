"""Predicts every image of a source: threads read and write, processes share the work, a rerun continues."""

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from unetdist.cli import json_records
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
from unetdist.model.config import WHOLE_IMAGE, InferenceConfig
from unetdist.model.saved_model import SavedModel
from unetdist.predict.image import LoadedImage, PendingImage, Prediction, predict_images
from unetdist.predict.outputs import Outputs
from unetdist.predict.sources import ImageSource, open_source
from unetdist.storage import files as storage

# File in the output folder that names the model and the settings of its results.
RECIPE_FILE = ".unetdist_predict.json"

# Images per thread that are read ahead, and results per thread that wait to be written.
AHEAD = 4

# Images per process between two barriers, so that a fast process never waits for longer than a connection lives.
MEET_EVERY = 256

NO_MEMORY = "needs more memory than there is; predict it in parts, with --window 512 512."

Given = TypeVar("Given")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Failure:
    """An image without a result, and the reason."""

    source: str
    reason: str


# A failure takes its image's place on the way from the readers to the writers.
Loaded = tuple[PendingImage, LoadedImage] | Failure
Predicted = tuple[PendingImage, LoadedImage, Prediction] | Failure


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
    """Collective. Predict every image of `source` and write the results below `out`; existing results are kept.

    The options are those of `unetdist predict`. The model is on the device of `world`; results have the size and the
    orientation in which a viewer shows the image. Returns the images of all processes that have no result.

    Raises:
        ConfigError: `out` has results of another model or other settings.
        DataError: see `open_source` and `Outputs.write`.
    """
    outputs, world = outputs or Outputs(), world or World()
    if min(batch_size, num_workers) < 1:
        raise ConfigError(f"--batch-size ({batch_size}) and --num-workers ({num_workers}) must be 1 or more.")
    images = open_source(source, out, every=every, image_range=saved.image_range)
    _check_alike(images, world)
    if problem := broadcast(_recipe_problem(saved, inference, out, overwrite) if world.is_main else None, world.device):
        raise ConfigError(problem)
    work = _Work(images, outputs, world, overwrite=overwrite)
    predict = partial(
        predict_images,
        saved,
        batch_size=batch_size,
        inference=inference,
        device=world.device,
        with_probabilities=outputs.probabilities,
        resized_to=images.resize,
    )
    failures: list[Failure] = []
    with progress("predicting", work.size, enabled=world.is_main) as bar:
        loaded = _in_threads(partial(_load, saved.model.config.in_channels), work, num_workers)
        predicted = _predict(predict, loaded, batch_size)
        for name, failed in _in_threads(partial(_write, outputs, saved), predicted, num_workers):
            bar.advance(1, name)
            failures += failed
    failures = _gather(failures, world)
    _log_result(work, failures, out, world)
    return failures


class _Work:
    """The images of this process that have no result yet; process r of n takes images r, r + n, r + 2n, ..."""

    def __init__(self, source: ImageSource, outputs: Outputs, world: World, *, overwrite: bool) -> None:
        self._source, self._outputs, self._world, self._overwrite = source, outputs, world, overwrite
        total = source.total
        self.size = None if total is None else len(range(world.rank, total, world.world_size))
        self.num_mine = self.num_skipped = 0

    def __iter__(self) -> Iterator[PendingImage]:
        for number, item in enumerate(self._source.items(self._is_wanted)):
            # Every process iterates over all numbers, so all of them meet here equally often.
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


def _in_threads(function: Callable[[Given], Done], items: Iterable[Given], num_threads: int) -> Iterator[Done]:
    """Yield `function(item)` in the order of `items`, while threads work on the next ones."""
    threads = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[Done]] = deque()
    try:
        # Bounded, because every waiting item holds the pixels of an image.
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > AHEAD * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _load(channels: int, item: PendingImage) -> Loaded:
    try:
        return item, item.load(channels)
    except DataError as error:
        return Failure(item.name, str(error).removeprefix(f"{item.name}: "))
    except MemoryError:
        return Failure(item.name, NO_MEMORY)


def _predict(
    predict: Callable[[list[Any]], list[Prediction]], loaded: Iterable[Any], batch_size: int
) -> Iterator[Predicted]:
    """Predict neighbours of equal size in `loaded` (see `Loaded`) together, and pass failures on."""
    for shape, group in groupby(loaded, lambda each: None if isinstance(each, Failure) else each[1].pixels.shape):
        if shape is None:
            yield from group
            continue
        while batch := list(islice(group, batch_size)):
            try:
                predictions = predict([image.pixels for _, image in batch])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                yield from (Failure(item.name, NO_MEMORY) for item, _ in batch)
                continue
            for (item, image), prediction in zip(batch, predictions, strict=True):
                yield item, image, prediction


def _write(outputs: Outputs, saved: SavedModel, predicted: Predicted) -> tuple[str, list[Failure]]:
    # Returns no pixels, because results wait until those before them are written.
    if isinstance(predicted, Failure):
        return Path(predicted.source).name, [predicted]
    item, image, prediction = predicted
    outputs.write(item.target, image, prediction, saved.palette)
    return item.target.name, []


def _check_alike(source: ImageSource, world: World) -> None:
    """Collective. Raise DataError if the processes see different images."""
    is_alike = broadcast(source.fingerprint, world.device) == source.fingerprint
    if any_rank(not is_alike, world.device):
        raise DataError(
            "the processes see different images in --input; do not add files to it now, and use storage that all "
            "processes share."
        )


def _recipe_problem(saved: SavedModel, inference: InferenceConfig, out: Path, overwrite: bool) -> str | None:
    """Note in `out` how its results are made; return why they must not join those that it has."""
    # The weights and not the path of the model, because runs/NAME/best changes during a training.
    digest = hashlib.sha256()
    for name, tensor in saved.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    recipe: dict[str, Any] = {
        "weights": digest.hexdigest(),
        "inference": dataclasses.asdict(inference),
        "image_range": saved.image_range,
    }
    recipe = json.loads(json.dumps(recipe))  # tuples become lists, as in the file
    try:
        former = json_records.build(dict[str, Any], json_records.parse(storage.read_file(out / RECIPE_FILE)))
    except (OSError, ValueError):
        former = recipe
    other = [name for name in recipe | former if former.get(name) != recipe.get(name)]
    if other and not overwrite and any(out.rglob("*_ids.*")):
        return (
            f"--out ({out}) has results of other {' and '.join(other)}; give another folder, or --overwrite to "
            "replace them."
        )
    if other or not (out / RECIPE_FILE).exists():
        try:
            storage.write_json(out / RECIPE_FILE, recipe)
        except OSError as error:
            return f"--out ({out}) cannot be written to ({error}); give another folder."
    return None


def _gather(failures: list[Failure], world: World) -> list[Failure]:
    """Collective. Return the failures of all processes, on each."""
    text = json.dumps([[failure.source, failure.reason] for failure in failures]).encode()
    # Collectives need tensors of one size, so each text is padded to the longest.
    size = -all_reduce_min(-len(text), world.device)
    mine = torch.frombuffer(bytearray(text.ljust(size)), dtype=torch.uint8).clone().to(world.device)
    parts = [json.loads(bytes(part.tolist())) for part in gather_to(0, mine)]
    return [Failure(*each) for each in broadcast([each for part in parts for each in part], world.device)]


def _log_result(work: _Work, failures: list[Failure], out: Path, world: World) -> None:
    """Collective. Log on the main process what all of them did."""
    counts = torch.tensor([work.num_mine, work.num_skipped], dtype=torch.int64, device=world.device)
    total, skipped = all_reduce_sum(counts).tolist()
    # Gloo's threads hold the tensors of the last collective. If they were freed while Python exits, it would crash.
    barrier()
    if not world.is_main:
        return
    if skipped:
        logger.info("%d of %d images have results already (--overwrite predicts them again)", skipped, total)
    logger.info("%d of %d images predicted, results in %s", total - skipped - len(failures), total, out)
    for failure in failures:
        logger.error("%s: %s", failure.source, failure.reason)
    if failures:
        logger.error("%d of %d images failed (reasons above)", len(failures), total)
