"""From jobs to a folder of shards: parallel, by several processes, restartable, and with one account of what is wrong.

The folder's `.ingest` holds what the shards are made from and a record of each finished one. A run goes on
where another one was stopped, by whatever means: a shard whose tar has the recorded hash is kept. The same input
gives the same bytes, whatever the number of workers, processes and interruptions.
"""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from unetdist.cli.logs import logger, progress
from unetdist.data.image_file import SIXTEEN_BITS, ImageRange
from unetdist.data.labels import Palette
from unetdist.data.labels.mask_report import MaskNotes
from unetdist.data.labels.masks import MaskFormat, UnknownColors
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError
from unetdist.sharding import plan
from unetdist.sharding.pool import run_jobs
from unetdist.sharding.records import RECORDS, Finished, Found, Job, finish, load, record_name
from unetdist.sharding.share import Share
from unetdist.sharding.sources import Problem
from unetdist.sharding.statistics import Statistics
from unetdist.storage.folders import Folder, open_folder

POLL_S = 1.0
"""Pause between two looks at what the other processes have recorded."""
WAIT_S = 3600.0
"""How long rank 0 waits without any new record."""

_READERS = 16
"""Records that are read side by side: each takes a while from an object store."""


@dataclass(frozen=True)
class Outcome:
    """What became of one folder."""

    folder: Folder
    manifest: Manifest | None
    """None where problems kept the data set from being finished."""
    problems: tuple[Problem, ...]
    found: tuple[Found, ...]
    statistics: Statistics
    num_kept: int
    """Shards that were there already."""
    notes: MaskNotes
    """How the masks were read."""


@dataclass
class FolderRun:
    """One folder that is being filled, by this process alone or by several."""

    folder: Folder
    jobs: Sequence[Job]
    plan: dict[str, Any]
    share: Share = field(default_factory=Share)
    verb: str = "writing"

    def __post_init__(self) -> None:
        self._made: dict[int, Finished] = {}
        self._finished: dict[int, Finished] = {}

    @contextmanager
    def open(self, *, overwrite: bool = False) -> Iterator[None]:
        """Hold the folder, once its former contents prove to be of the same plan (or are to be overwritten)."""
        with ExitStack() as held:
            with self.told():
                held.enter_context(plan.hold(self.folder, self.share, kind=self.plan[plan.KIND]))
                plan.settle(self.folder, self.plan, len(self.jobs), self.share, overwrite=overwrite)
            yield

    def make(self, workers: int) -> None:
        """Make, or keep, the shards of this process's share."""
        mine = self.share.of(self.jobs)
        is_shown = self.share.rank == 0 or not self.share.is_launched
        with self.told():
            for item in run(finish, mine, workers, f"{self.verb} {self.folder}", is_shown=is_shown):
                self._made[item.number] = self._finished[item.number] = item

    @property
    def has_replaced(self) -> bool:
        """Whether this process made anew what was recorded before: another one may have added up the old record."""
        return any(item.is_replaced for item in self._made.values())

    def wait(self) -> None:
        """Until all processes have recorded their shards; `DataError` where none does so for `WAIT_S`."""
        done, since = self.look(), time.monotonic()
        others = f"waiting for the other {self.share.world_size - 1} processes, {self.verb} {self.folder}"
        with progress(others, len(self.jobs), completed=done) as bar:
            while done < len(self.jobs):
                began = time.monotonic()
                if began - since > WAIT_S:
                    raise DataError(
                        f"{done} of {len(self.jobs)} shards are complete, and none was added for {WAIT_S:.0f} s: "
                        "another process has died or hangs. Look into its output, and run the same command again: "
                        "it keeps what is complete.",
                        source=self.folder,
                    )
                more = self.look() - done
                if more:
                    bar.advance(more)
                    done, since = done + more, time.monotonic()
                    if done == len(self.jobs):  # What was read first may have been made anew since.
                        self._finished = dict(self._made)
                        done = self.look()
                elif done < len(self.jobs):
                    time.sleep(max(POLL_S, 5 * (time.monotonic() - began)))

    def look(self) -> int:
        """How many shards are recorded by now, by any process, and there by their sizes."""
        there = set(open_folder(self.folder.where(RECORDS)).names(".json"))
        recorded = [
            (job, name)
            for job in self.jobs
            if job.number not in self._finished
            for name in (record_name(job.number), record_name(job.number, is_bad=True))
            if name.removeprefix(f"{RECORDS}/") in there
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            for item in pool.map(lambda job_and_name: _load_what_is_there(*job_and_name), recorded):
                if item is not None:
                    self._finished[item.number] = item
        return len(self._finished)

    @property
    def outcome(self) -> Outcome:
        """The sum of all recorded shards, before a manifest exists."""
        return gather(self.folder, [self._finished[job.number] for job in self.jobs])

    def merge(
        self,
        palette: Palette,
        *,
        skip_bad: bool = False,
        is_refused: bool = False,
        resize: tuple[int, int] | None = None,
        image_range: ImageRange = SIXTEEN_BITS,
        masks: tuple[MaskFormat, UnknownColors] | None = None,
    ) -> Outcome:
        """Add up all shards, and write the manifest if no sample is bad (or bad ones are to be skipped).

        Args:
            palette: Classes.
            skip_bad: Bad samples were left out.
            is_refused: The data set as a whole is not to be finished.
            resize: What images were resized to.
            image_range: Values of images of more than 8 bits that became 0 and 255.
            masks: How masks are read, where not all of them hold class indices.

        Raises:
            DataError: No sample is left, or the folder takes no files.
        """
        finished = [self._finished[job.number] for job in self.jobs]
        outcome = self.outcome
        with self.told():
            if is_refused or (outcome.problems and not skip_bad):
                plan.drop(self.folder)
                return outcome
            if not outcome.statistics.sizes:
                number = sum(item.num_samples for item in finished)
                raise DataError(
                    f"none of {number} samples is left, all are bad; run it without --skip-bad to see why."
                    if skip_bad
                    else "the tars hold no samples.",
                    source=self.folder,
                )
            shards = [item.shard for item in finished if item.shard]
            manifest = outcome.statistics.to_manifest(
                shards, palette.to_records(), palette.num_classes, resize, image_range
            )
            if not any(manifest.class_pixels):
                raise DataError(
                    "all pixels of the masks are ignored, and nothing is left to train on or to score; compare the "
                    "colours or ids of the masks with the label file, and see what --ignore names.",
                    source=self.folder,
                )
            if masks is not None and not all(item.has_index_masks for item in finished):
                manifest = replace(manifest, mask_format=masks[0], unknown_colors=masks[1])
            manifest.save(self.folder)
        return replace(outcome, manifest=manifest)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say what stays when the block is interrupted, or cannot write."""
        try:
            yield
        except KeyboardInterrupt:
            logger.warning(
                "stopped: %d of %d shards are complete in %s; run the same command again to go on.",
                plan.num_finished(self.folder),
                len(self.jobs),
                self.folder,
            )
            raise
        except OSError as error:
            done = f"{plan.num_finished(self.folder)} of {len(self.jobs)} shards are complete"
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "mend that" if self.plan[plan.KIND] == plan.WRITE else "mend that, or give --out DIR,"
            raise DataError(
                f"{'the disk is full' if is_full else f'cannot be written ({error})'}: {done}; "
                f"{'free some space' if is_full else remedy} and run the same command again to go on.",
                source=self.folder,
            ) from error


def _load_what_is_there(job: Job, name: str) -> Finished | None:
    """A record, unless the shard that it tells of was lost or cut since."""
    item = load(job, name)
    return item if item is None or item.shard is None or job.has_sizes(item.shard) else None


def run(
    work: Callable[[Job], Finished],
    jobs: Sequence[Job],
    workers: int,
    description: str,
    *,
    is_shown: bool = True,
) -> list[Finished]:
    """What `work` tells of each job, in any order; progress in samples."""
    finished: list[Finished] = []
    num_problems = 0
    with progress(description, sum(job.num_samples for job in jobs), enabled=is_shown) as bar:

        def done(item: Finished) -> None:
            nonlocal num_problems
            finished.append(item)
            num_problems += len(item.problems)
            bar.advance(
                jobs_by_number[item.number].num_samples, note=f"{num_problems} bad" if num_problems else ""
            )

        jobs_by_number = {job.number: job for job in jobs}
        run_jobs(work, jobs, workers=workers, done=done)
    return finished


def gather(folder: Folder, finished: Sequence[Finished]) -> Outcome:
    """Add up what was told of the shards of a folder, in their order."""
    statistics = Statistics()
    for item in finished:
        statistics.merge(item.statistics)
    return Outcome(
        folder,
        None,
        tuple(problem for item in finished for problem in item.problems),
        tuple(found for item in finished for found in item.found),
        statistics,
        sum(item.is_kept for item in finished),
        MaskNotes.sum(item.notes for item in finished),
    )
