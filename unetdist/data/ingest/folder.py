"""From a source to a folder of shards: in parallel, restartable, and with one account of all that is wrong.

The folder's `.ingest` holds what the shards are made from and a record of each finished one. A run goes on
where another one was stopped, by whatever means: a shard whose tar has the recorded hash is kept. The same input
gives the same bytes, whatever the number of workers and interruptions.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from unetdist.data.ingest import plan
from unetdist.data.ingest.convert import ConvertOptions, Finished, Found, Job, finish_shard
from unetdist.data.ingest.pool import run_jobs
from unetdist.data.ingest.sources import Problem, Reader, Sample
from unetdist.data.ingest.split import hash_key
from unetdist.data.ingest.statistics import Statistics
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.logs import logger, progress

MIN_SHARDS = 16
"""Of a small data set, as long as each keeps `MIN_SAMPLES`: shards are what ranks and caches divide."""
MIN_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How samples are laid out in shards."""

    samples_per_shard: int | None = None
    """At most so many; None: by size."""
    shard_size_mb: float = 256.0
    """Megabytes of source files that a shard is to hold, if `samples_per_shard` is None."""
    keep_order: bool = False
    """Samples in the order of their keys; else shuffled, by a hash of the key, so that neighbours part."""

    def __post_init__(self) -> None:
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard ({self.samples_per_shard}) must be 1 or more; use 1000.")
        if self.shard_size_mb <= 0:
            raise ConfigError(f"shard_size_mb ({self.shard_size_mb:g}) must be over 0; use 256.")

    def divide(self, samples: Sequence[Sample]) -> list[tuple[Sample, ...]]:
        """The samples of each shard, in order; all hold the same number, or one more."""
        ordered = sorted(samples, key=lambda sample: sample.key)
        if not self.keep_order:
            ordered.sort(key=lambda sample: hash_key(sample.key))
        if self.samples_per_shard:
            count = -(-len(ordered) // self.samples_per_shard)
        else:
            by_size = round(sum(sample.num_bytes for sample in ordered) / (self.shard_size_mb * 1e6))
            count = max(1, by_size, min(MIN_SHARDS, len(ordered) // MIN_SAMPLES))
        bounds = [len(ordered) * number // count for number in range(count + 1)]
        return [tuple(ordered[bounds[number] : bounds[number + 1]]) for number in range(count)]


@dataclass(frozen=True)
class Outcome:
    """What became of one folder."""

    folder: Path
    manifest: Manifest | None
    """None where problems kept the data set from being finished."""
    problems: tuple[Problem, ...]
    found: tuple[Found, ...]
    statistics: Statistics
    num_kept: int
    """Shards that were there already."""


def ingest(
    samples: Sequence[Sample],
    reader: Reader,
    palette: Palette,
    folder: str | Path,
    *,
    convert: ConvertOptions,
    layout: LayoutOptions,
    workers: int = 1,
    overwrite: bool = False,
    is_rehearsal: bool = False,
) -> Outcome:
    """Write `samples` to `folder`, and the manifest if none of them is bad (or bad ones are to be skipped).

    Args:
        samples: One or more.
        reader: Of their bytes.
        palette: Their classes.
        folder: Made if need be; what a former run finished there is kept.
        convert: What is done to a sample.
        layout: How samples are divided into shards.
        workers: Processes.
        overwrite: Remove what a former run of another plan wrote.
        is_rehearsal: Look for problems only, write nothing.

    Raises:
        DataError: The folder holds something else, the disk is full, or a worker died.
    """
    folder = Path(folder)
    jobs = [
        Job(folder, number, part, reader, palette, convert, is_rehearsal)
        for number, part in enumerate(layout.divide(samples))
    ]
    if is_rehearsal:
        return gather(folder, _finish(jobs, workers, f"looking at {folder}"))
    with _stopped(folder, len(jobs)), plan.hold(folder):
        plan.settle(folder, jobs, asdict(layout), overwrite=overwrite)
        finished = _finish(jobs, workers, f"writing {folder}")
        outcome = gather(folder, finished)
        if outcome.problems and not convert.skip_bad:
            plan.drop(folder)
            return outcome
        if not outcome.statistics.sizes:
            raise DataError(
                f"none of {len(samples)} samples is left, all are bad; run it without --skip-bad to see why.",
                source=folder,
            )
        manifest = outcome.statistics.to_manifest(
            [item.shard for item in finished if item.shard],
            palette.to_records(),
            palette.num_classes,
            convert.resize,
        )
        manifest.save(folder)
    return gather(folder, finished, manifest)


def _finish(jobs: Sequence[Job], workers: int, description: str) -> list[Finished]:
    finished: list[Finished] = []
    with progress(description, sum(len(job.samples) for job in jobs)) as bar:

        def done(item: Finished) -> None:
            finished.append(item)
            num_problems = sum(len(other.problems) for other in finished)
            bar.advance(item.num_samples, note=f"{num_problems} bad" if num_problems else "")

        run_jobs(finish_shard, jobs, workers=workers, done=done)
    return sorted(finished, key=lambda item: item.number)


def gather(folder: Path, finished: Sequence[Finished], manifest: Manifest | None = None) -> Outcome:
    """Add up what was told of the shards of a folder."""
    statistics = Statistics()
    for item in finished:
        statistics.merge(item.statistics)
    return Outcome(
        folder,
        manifest,
        tuple(problem for item in finished for problem in item.problems),
        tuple(found for item in finished for found in item.found),
        statistics,
        sum(item.is_kept for item in finished),
    )


@contextmanager
def _stopped(folder: Path, num_shards: int) -> Iterator[None]:
    """Say what stays when the block is interrupted, or cannot write."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning(
            "stopped: %d of %d shards are complete in %s; run the same command again to go on.",
            plan.num_finished(folder),
            num_shards,
            folder,
        )
        raise
    except OSError as error:
        done = f"{plan.num_finished(folder)} of {num_shards} shards are complete"
        raise refusal(folder, error, done, "run the same command again to go on") from error


def refusal(folder: Path, error: OSError, done: str, remedy: str) -> DataError:
    """What to raise when `folder` cannot be written: why, what is done so far, and the remedy after mending."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(
        f"{'the disk is full' if is_full else f'cannot be written ({error})'}: {done}; "
        f"{'free some space' if is_full else 'mend that'} and {remedy}.",
        source=folder,
    )
