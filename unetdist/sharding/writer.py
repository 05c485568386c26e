"""A whole data set, of one or two folders of shards: all problems are reported together, and only then refused."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from operator import methodcaller

from unetdist.cli.logs import logger
from unetdist.data.image_file import HIGH_BYTE, SIXTEEN_BITS
from unetdist.data.labels import Palette
from unetdist.data.labels.mask_report import MaskNotes, black_and_white, resampled
from unetdist.data.tar_index import MemberNames
from unetdist.errors import DataError
from unetdist.sharding.convert import UNKNOWN_COLORS, ConvertOptions
from unetdist.sharding.first_look import look
from unetdist.sharding.folder import FolderRun, Outcome, gather, run
from unetdist.sharding.foreign import TarJob
from unetdist.sharding.layout import LayoutOptions
from unetdist.sharding.plan import plan_of, plan_of_tars
from unetdist.sharding.report import PROBLEMS_NAME, count, describe, describe_problems, describe_unlisted
from unetdist.sharding.shard_job import ShardJob
from unetdist.sharding.share import ALONE, Share
from unetdist.sharding.sources import Problem, Sample, Source
from unetdist.sharding.statistics import wider
from unetdist.sharding.tar_source import Tars
from unetdist.sharding.value_range import little_used, refuse_little_used, warn_of_little_used
from unetdist.storage.folders import Folder, open_folder


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a data set is written, which changes none of its bytes."""

    workers: int = 1
    """Processes."""
    overwrite: bool = False
    """Replace what a former run of another plan wrote."""
    share: Share = ALONE
    """This process's part, where several write one data set."""


def write_dataset(
    source: Source,
    parts: Mapping[str, Sequence[Sample]],
    palette: Palette,
    *,
    convert: ConvertOptions,
    layout: LayoutOptions,
    options: RunOptions = RunOptions(),
) -> str | None:
    """Write each part (location of a folder -> samples) of the source and return an account of it, to be printed.

    Where samples are missing or doubled nothing is written, for the list of samples is yet to change, but every
    sample is looked at, so that the user mends all in one go.

    Returns:
        None where it is for other processes to finish the data set.

    Raises:
        DataError: All that is wrong, unless bad samples are to be skipped.
    """
    look(source.reader, source.samples, palette, convert)
    is_refused = bool(source.problems) and not convert.skip_bad
    runs = []
    for location, samples in parts.items():
        folder = open_folder(location)
        jobs = [
            ShardJob(folder, number, part, source.reader, palette, convert, is_refused)
            for number, part in enumerate(layout.divide(samples))
        ]
        runs.append(FolderRun(folder, jobs, plan_of(jobs, asdict(layout)), options.share))
    unfit: list[Problem] = []
    if is_refused:
        if options.share.rank:
            logger.warning("the source has problems, of which rank 0 tells; nothing is written.")
            return None
        outcomes = [_look_at(one, options.workers) for one in runs]
    else:
        refuse_little_used(convert, source)
        with ExitStack() as held:
            for one in runs:
                held.enter_context(one.open(overwrite=options.overwrite))
            if not _make(runs, options):
                return None
            little = little_used(convert, _extremes(runs), "all images of more than 8 bits")
            unfit = [*([] if little is None else [little]), *_unfit_masks(convert, runs, palette)]
            outcomes = [
                one.merge(
                    palette,
                    skip_bad=convert.skip_bad,
                    is_refused=bool(unfit),
                    resize=convert.resize,
                    image_range=convert.image_range or SIXTEEN_BITS,
                )
                for one in runs
            ]
    account = describe_all([*source.problems, *unfit], outcomes, palette)
    problems = len(source.problems) + len(unfit) + sum(len(outcome.problems) for outcome in outcomes)
    if unfit or (problems and not convert.skip_bad):
        kept = "" if is_refused else " (finished shards are kept)"
        skip = "" if unfit else ", or leave bad samples out with --skip-bad"
        raise DataError(
            f"{count(problems, 'problem')} in {len(source.samples)} samples, the data set is not finished.\n"
            f"{account}\nMend these and run the same command again{kept}{skip}."
        )
    left_out = (
        f"left out, because of --skip-bad:\n{account}\n" if problems else f"{account}\n" if account else ""
    )
    return left_out + "\n".join(describe(outcome, palette) for outcome in outcomes)


def index_tars(
    tars: Tars,
    names: MemberNames,
    palette: Palette,
    *,
    convert: ConvertOptions,
    options: RunOptions = RunOptions(),
) -> str | None:
    """Index tars of others and write the manifest; as `write_dataset`, but nothing can be left out.

    Raises:
        DataError: All that is wrong, or a folder that takes no files.
    """
    jobs = [
        TarJob(tars.out, number, tars.source, name, shard_name, names, palette, convert)
        for number, (name, shard_name) in enumerate(zip(tars.names, tars.shard_names, strict=True))
    ]
    jobs[0].look()
    # Any other plan is overwritten: the tars stay, and an index is soon made anew.
    one = FolderRun(tars.out, jobs, plan_of_tars(jobs), options.share, verb="indexing")
    with one.open(overwrite=True):
        if not _make([one], options):
            return None
        warn_of_little_used(_extremes([one]))
        unfit = _unfit_masks(convert, [one], palette)
        outcome = one.merge(
            palette,
            is_refused=bool(unfit),
            image_range=HIGH_BYTE,
            masks=(convert.mask_format, convert.unknown_colors),
        )
    account = describe_all(unfit, [outcome], palette)
    if unfit or outcome.problems:
        problems = count(len(unfit) + len(outcome.problems), "problem")
        raise DataError(f"{problems} in {count(len(jobs), 'tar')}, no manifest is written.\n{account}")
    return (f"{account}\n" if account else "") + describe(outcome, palette)


def _look_at(one: FolderRun, workers: int) -> Outcome:
    finished = run(methodcaller("make"), one.jobs, workers, f"looking at {one.folder}")
    return gather(one.folder, sorted(finished, key=lambda item: item.number))


def _make(runs: Sequence[FolderRun], options: RunOptions) -> bool:
    """Make this process's share; whether it is for this process to add up all of them."""
    for one in runs:
        one.make(options.workers)
    share = options.share
    if share.is_all:
        return True
    if share.is_launched and share.rank == 0:
        for one in runs:
            one.wait()
        return True
    if share.is_launched:
        # Rank 0 may have added up former records before this process found that their shards are not whole.
        return any(one.has_replaced for one in runs) and all(one.look() == len(one.jobs) for one in runs)
    for one in runs:
        done = one.look()
        if done < len(one.jobs):
            logger.info(
                "%s: the shards of task %d are done, %d of %d are complete; the task that finishes last writes the "
                "manifest (if none did, run one of them again; to work alone: --rank 0 --world-size 1).",
                one.folder,
                share.rank,
                done,
                len(one.jobs),
            )
            return False
    return True


def _extremes(runs: Sequence[FolderRun]) -> tuple[float, float] | None:
    """The lowest and the highest value of all images of more than 8 bits."""
    extremes = None
    for one in runs:
        extremes = wider(extremes, one.outcome.statistics.extremes)
    return extremes


def _unfit_masks(convert: ConvertOptions, runs: Sequence[FolderRun], palette: Palette) -> list[Problem]:
    """Problems of masks that only all samples together show."""
    outcomes = [one.outcome for one in runs]
    notes = MaskNotes.sum(outcome.notes for outcome in outcomes)
    faults = [resampled(notes, convert.mask_format)]
    if not any(problem.kind == UNKNOWN_COLORS for outcome in outcomes for problem in outcome.problems):
        faults.append(black_and_white(palette, notes))
    return [
        Problem("masks that cannot mean this", palette.path, fault) for fault in faults if fault is not None
    ]


def describe_all(problems: Sequence[Problem], outcomes: Sequence[Outcome], palette: Palette) -> str:
    """All that is wrong, in the source and in the folders; the list of a former run is removed where nothing is."""
    problems = [*problems, *(problem for outcome in outcomes for problem in outcome.problems)]
    found = [item for outcome in outcomes for item in outcome.found]
    notes = MaskNotes.sum(outcome.notes for outcome in outcomes)
    if not problems:
        for folder in {str(outcome.folder): outcome.folder for outcome in outcomes}.values():
            _forget_problems(folder)
    account = describe_problems(problems, describe_unlisted(found, palette, notes), outcomes[0].folder)
    return "\n".join([account] * bool(account) + notes.describe(palette))


def _forget_problems(folder: Folder) -> None:
    if PROBLEMS_NAME in folder.names(PROBLEMS_NAME):
        folder.remove(PROBLEMS_NAME)
