"""Fills one folder with shards: in parallel, by one or several processes, and restartable.

A run continues where another one was stopped, for whatever reason: a shard whose tar has the recorded hash is kept. The
same input gives the same bytes, whatever the number of workers, processes and interruptions.
"""

import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from unetdist.cli.logs import logger, progress
from unetdist.data.image_file import HIGH_BYTE, SIXTEEN_BITS
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError
from unetdist.sharding import plan
from unetdist.sharding.account import Account
from unetdist.sharding.plan import WorkPartition
from unetdist.sharding.pool import run_jobs
from unetdist.sharding.shard_job import FinishedShard, ShardJob, finish, load_record, record_name
from unetdist.storage.folders import Folder

# Records are read concurrently, because each takes a round trip to an object store.
_READ_THREADS = 16


@dataclass
class FolderRun:
    """One folder that is being filled, by this process alone or by several."""

    folder: Folder
    jobs: Sequence[ShardJob]
    plan: dict[str, Any]
    partition: WorkPartition
    manifest: Manifest | None = None
    """None until the data set is finished."""
    _finished: dict[int, FinishedShard] = field(default_factory=dict, init=False)

    @contextmanager
    def open(self, *, overwrite: bool = False) -> Iterator[None]:
        """Lock the folder, if its contents belong to the same plan (or may be overwritten)."""
        with ExitStack() as held:
            with self._explained():
                held.enter_context(plan.hold(self.folder, self.partition, kind=self.plan[plan.KIND]))
                plan.settle(self.folder, self.plan, len(self.jobs), self.partition, overwrite=overwrite)
            yield

    def make(self, workers: int) -> None:
        """Make, or keep, the shards of this process."""
        jobs = self.jobs[self.partition.rank :: self.partition.world_size]
        num_problems = 0
        is_shown = self.partition.rank == 0 or not self.partition.is_launched
        description = f"{'writing' if self.plan[plan.KIND] == plan.WRITE else 'indexing'} {self.folder}"
        with self._explained(), progress(description, len(jobs), enabled=is_shown) as bar:

            def done(item: FinishedShard) -> None:
                nonlocal num_problems
                self._finished[item.number] = item
                num_problems += len(item.account.problems)
                bar.advance(note=f"{num_problems} bad" if num_problems else "")

            run_jobs(finish, jobs, workers=workers, done=done)

    def num_recorded(self) -> int:
        """Number of shards that any process has recorded and that exist with the right sizes."""
        missing = [job for job in self.jobs if job.number not in self._finished]
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for item in filter(None, pool.map(_load_existing, missing)):
                self._finished[item.number] = item
        return len(self._finished)

    @property
    def finished(self) -> list[FinishedShard]:
        """All shards in their order, once all are recorded."""
        return [self._finished[job.number] for job in self.jobs]

    @property
    def account(self) -> Account:
        """The sum over all shards."""
        return Account.sum(item.account for item in self.finished)

    def finish(self, *, is_refused: bool) -> None:
        """Write the manifest, unless a sample is bad (and bad ones are not skipped) or the data set `is_refused`.

        Raises:
            DataError: No sample is left, or the folder is not writable.
        """
        job, account = self.jobs[0], self.account
        options, statistics = job.options, account.statistics
        with self._explained():
            if is_refused or (account.problems and not options.skip_bad):
                plan.drop(self.folder)
                return
            if not statistics.sizes:
                number = sum(item.num_samples for item in self.finished)
                raise DataError(
                    f"none of {number} samples is left; run it without --skip-bad to see why."
                    if options.skip_bad
                    else "the tars hold no samples.",
                    source=self.folder,
                )
            manifest = statistics.to_manifest(
                [item.shard for item in self.finished if item.shard],
                job.palette.to_records(),
                job.palette.num_classes,
                options.resize,
                # The loader reads the high byte of 16 bits in tars of others.
                HIGH_BYTE if self.plan[plan.KIND] == plan.INDEX else options.image_range or SIXTEEN_BITS,
            )
            # Training on it would fail late, with a loss of 0/0.
            if not any(manifest.class_pixels):
                raise DataError(
                    "all pixels of the masks are ignored, which leaves nothing to train on or to score; compare the "
                    "colours or ids of the masks with the label file, and check --ignore.",
                    source=self.folder,
                )
            if not all(item.has_index_masks for item in self.finished):
                manifest = replace(manifest, mask_format=options.mask_format, unknown_colors=options.unknown_colors)
            manifest.save(self.folder)
        self.manifest = manifest

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what is complete if the block is interrupted or cannot write."""
        try:
            yield
        except KeyboardInterrupt:
            logger.warning(
                "stopped: %d of %d shards are complete in %s; run the same command again to continue.",
                plan.num_finished(self.folder),
                len(self.jobs),
                self.folder,
            )
            raise
        except OSError as error:
            done = f"{plan.num_finished(self.folder)} of {len(self.jobs)} shards are complete"
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "fix that" if self.plan[plan.KIND] == plan.WRITE else "fix that, or give --out DIR,"
            raise DataError(
                f"{'the disk is full' if is_full else f'cannot be written ({error})'}: {done}; "
                f"{'free some space' if is_full else remedy} and run the same command again to continue.",
                source=self.folder,
            ) from error


def _load_existing(job: ShardJob) -> FinishedShard | None:
    """The record of a shard or of its problems, unless the shard was lost or cut since."""
    for name in (record_name(job.number), record_name(job.number, is_bad=True)):
        item = load_record(job, name)
        if item is not None and (item.shard is None or job.has_sizes(item.shard)):
            return item
    return None
