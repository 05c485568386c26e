"""A whole data set, of one or two folders of shards: all problems are reported together, and only then refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from unetdist.data.ingest.convert import ConvertOptions
from unetdist.data.ingest.folder import LayoutOptions, Outcome, ingest
from unetdist.data.ingest.report import PROBLEMS_NAME, describe, describe_problems
from unetdist.data.ingest.sources import Sample, Source
from unetdist.data.labels import Palette
from unetdist.errors import DataError


def write_dataset(
    source: Source,
    parts: Mapping[Path, Sequence[Sample]],
    palette: Palette,
    *,
    convert: ConvertOptions,
    layout: LayoutOptions,
    workers: int = 1,
    overwrite: bool = False,
) -> str:
    """Write each part (folder -> samples) of the source and return an account of it, to be printed.

    Where samples are missing or doubled nothing is written, for the list of samples is yet to change, but every
    sample is looked at, so that the user mends all in one go.

    Raises:
        DataError: All that is wrong, unless bad samples are to be skipped.
    """
    is_refused = bool(source.problems) and not convert.skip_bad
    outcomes = [
        ingest(
            samples,
            source.reader,
            palette,
            folder,
            convert=convert,
            layout=layout,
            workers=workers,
            overwrite=overwrite,
            is_rehearsal=is_refused,
        )
        for folder, samples in parts.items()
    ]
    account = _account_of_problems(source, outcomes)
    problems = len(source.problems) + sum(len(outcome.problems) for outcome in outcomes)
    if problems and not convert.skip_bad:
        kept = "" if is_refused else " (finished shards are kept)"
        raise DataError(
            f"{problems} {'problem' if problems == 1 else 'problems'} in {len(source.samples)} samples, the data set "
            f"is not finished.\n{account}\nMend these and run the same command again{kept}, or leave bad samples "
            "out with --skip-bad."
        )
    for folder in {outcome.folder for outcome in outcomes} if not problems else ():
        (folder / PROBLEMS_NAME).unlink(missing_ok=True)
    left_out = (
        f"left out, because of --skip-bad:\n{account}\n" if problems else f"{account}\n" if account else ""
    )
    return left_out + "\n".join(describe(outcome, palette) for outcome in outcomes)


def _account_of_problems(source: Source, outcomes: Sequence[Outcome]) -> str:
    problems = [*source.problems, *(problem for outcome in outcomes for problem in outcome.problems)]
    found = [item for outcome in outcomes for item in outcome.found]
    return describe_problems(problems, found, outcomes[0].folder)
