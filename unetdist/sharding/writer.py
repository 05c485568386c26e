"""Writes a whole data set of one or two folders of shards, or reports all problems of its samples together."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict

from unetdist.cli.logs import logger
from unetdist.data.labels import Palette
from unetdist.data.labels.mask_report import black_and_white, resampled
from unetdist.data.tar_index import MemberNames
from unetdist.errors import DataError
from unetdist.sharding.account import Account
from unetdist.sharding.convert import UNKNOWN_COLORS, ConvertOptions
from unetdist.sharding.describe import PROBLEMS_NAME, count, describe_folder, describe_problems
from unetdist.sharding.first_look import little_used, look, refuse_little_used
from unetdist.sharding.folder import FolderRun
from unetdist.sharding.foreign_tars import ForeignTars, IndexJob
from unetdist.sharding.plan import WorkPartition, plan_to_index, plan_to_write
from unetdist.sharding.shard_job import WriteJob
from unetdist.sharding.sources import Problem, RawSample, SampleSource
from unetdist.sharding.split import LayoutOptions
from unetdist.storage.folders import open_folder

_SKIP = ", or leave bad samples out with --skip-bad"


def write_dataset(
    source: SampleSource,
    parts: Mapping[str, Sequence[RawSample]],
    palette: Palette,
    *,
    convert: ConvertOptions,
    layout: LayoutOptions,
    partition: WorkPartition,
    workers: int = 1,
    overwrite: bool = False,
) -> str | None:
    """Write the shards of each folder in `parts`, which maps a location to its samples.

    `overwrite` replaces what a run of another plan wrote.

    Returns:
        A report for the user; None if other processes will finish the data set.

    Raises:
        DataError: All problems; with `convert.skip_bad`, only those that concern the whole input.
    """
    look(source.reader, source.samples, palette, convert)
    runs = []
    for location, samples in parts.items():
        folder = open_folder(location)
        jobs = [
            WriteJob(folder=folder, number=number, palette=palette, options=convert, samples=part, reader=source.reader)
            for number, part in enumerate(layout.divide(samples))
        ]
        runs.append(FolderRun(folder, jobs, plan_to_write(jobs, asdict(layout)), partition))
    # Before anything is written, because the list of samples will change.
    if source.problems and not convert.skip_bad:
        if partition.rank:
            logger.warning("found problems in the input (listed by rank 0); nothing was written.")
            return None
        raise _refusal(source, Account(problems=list(source.problems)), runs, _SKIP)
    refuse_little_used(convert, source)
    with ExitStack() as held:
        for run in runs:
            held.enter_context(run.open(overwrite=overwrite))
        if not _make(runs, workers):
            return None
        total = Account.sum(run.account for run in runs)
        unfit = _unfit_masks(convert, total, palette)
        if convert.image_range is None and (fault := little_used(total.statistics.extremes)):
            unfit.insert(0, Problem("little of 16 bits is used", "all images of more than 8 bits", fault))
        for run in runs:
            run.finish(is_refused=bool(unfit))
    total.problems = [*source.problems, *unfit, *total.problems]
    if unfit or (total.problems and not convert.skip_bad):
        raise _refusal(source, total, runs, f" (finished shards are kept){'' if unfit else _SKIP}")
    heading = ["left out, because of --skip-bad:"] if total.problems else []
    return "\n".join([*heading, *_describe_problems(total, runs), *map(describe_folder, runs)])


def index_tars(
    tars: ForeignTars,
    names: MemberNames,
    palette: Palette,
    *,
    convert: ConvertOptions,
    partition: WorkPartition,
    workers: int = 1,
) -> str | None:
    """Index tars of others and write the manifest; like `write_dataset`, but no sample can be left out.

    Raises:
        DataError: All problems, or a folder that is not writable.
    """
    jobs = [
        IndexJob(
            folder=tars.out,
            number=number,
            palette=palette,
            options=convert,
            source=tars.source,
            name=name,
            shard_name=shard_name,
            names=names,
        )
        for number, (name, shard_name) in enumerate(zip(tars.names, tars.shard_names, strict=True))
    ]
    # One tar is enough to see that the label file belongs to other masks.
    jobs[0].look()
    run = FolderRun(tars.out, jobs, plan_to_index(jobs), partition)
    # Any other plan is overwritten, because the tars stay and an index is quickly made.
    with run.open(overwrite=True):
        if not _make([run], workers):
            return None
        total = run.account
        if fault := little_used(total.statistics.extremes):
            # Only the high byte of images in tars is read.
            logger.warning(
                "the images in these tars lose detail: to keep it, unpack the tars and write shards with --images DIR "
                "--masks DIR. Their %s",
                fault,
            )
        unfit = _unfit_masks(convert, total, palette)
        run.finish(is_refused=bool(unfit))
    total.problems[:0] = unfit
    lines = _describe_problems(total, [run])
    if total.problems:
        problems, text = count(len(total.problems), "problem"), "\n".join(lines)
        raise DataError(f"{problems} in {count(len(jobs), 'tar')}, no manifest is written.\n{text}")
    return "\n".join([*lines, describe_folder(run)])


def _make(runs: Sequence[FolderRun], workers: int) -> bool:
    """Make the shards of this process; whether this process is to finish the data set."""
    for run in runs:
        run.make(workers)
    # The last process to finish completes the data set. One that finds a damaged shard removes the manifest before it
    # makes the shard again, so that it is the last, even if others have read the old record.
    for run in runs:
        done = run.num_recorded()
        if done < len(run.jobs):
            logger.info(
                "%s: the shards of task %d are done, %d of %d are complete; the task that finishes last writes the "
                "manifest (if none did, run one of them again; to work alone: --rank 0 --world-size 1).",
                run.folder,
                run.partition.rank,
                done,
                len(run.jobs),
            )
            return False
    return True


def _unfit_masks(convert: ConvertOptions, account: Account, palette: Palette) -> list[Problem]:
    """Problems of masks that only all samples together show."""
    faults = [resampled(account.notes, convert.mask_format)]
    if not any(problem.kind == UNKNOWN_COLORS for problem in account.problems):
        faults.append(black_and_white(palette, account.notes))
    return [Problem("masks that cannot mean this", palette.path, fault) for fault in faults if fault]


def _refusal(source: SampleSource, account: Account, runs: Sequence[FolderRun], remedy: str) -> DataError:
    text = "\n".join(_describe_problems(account, runs))
    return DataError(
        f"{count(len(account.problems), 'problem')} in {len(source.samples)} samples, the data set is not finished.\n"
        f"{text}\nFix these and run the same command again{remedy}."
    )


def _describe_problems(account: Account, runs: Sequence[FolderRun]) -> list[str]:
    """All problems, and notes on the masks; removes the list of an earlier run if there are no problems."""
    palette = runs[0].jobs[0].palette
    if not account.problems:
        for run in runs:
            run.folder.remove(PROBLEMS_NAME)
    text = describe_problems(account.problems, runs[0].folder, account.found, palette, account.notes)
    return [*([text] if text else []), *account.notes.describe(palette)]
