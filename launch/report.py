"""A run, or several beside each other, as one HTML file: `python launch/report.py runs/x [runs/y ...]`.

Curves, classes with intervals, the confusion matrix, the worst and best validation pictures, what the settings differ
in, and how the runs went. The file needs no network and no other file. The pictures and the intervals of classes come
from scoring the weights anew on the run's data.val, if it is on this machine, or on --data.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unetdist.apps.report.images import gallery
from unetdist.apps.report.page import MOST_RUNS, render
from unetdist.apps.report.run import Run, read_runs
from unetdist.apps.report.scored import Scored, score
from unetdist.cli.logs import logger, run_script, set_up_logging
from unetdist.errors import ConfigError, UnetdistError
from unetdist.storage.files import write_atomic, write_text


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, score, write."""
    args = make_parser().parse_args(argv)
    _check(args)
    set_up_logging()
    runs = read_runs(args.runs, args.weights)
    scored, notes = _score(runs, args) if args.pictures else ({}, [])
    if not args.pictures:
        notes = ["No pictures and no intervals of classes: they were not asked for (--pictures 0)."]
    out = args.out or args.runs[0] / "report.html"
    page = render(runs, scored, num_pictures=args.pictures, notes=notes)
    try:
        write_text(out, page)
    except OSError as error:
        raise ConfigError(f"--out ({out}) cannot be written ({error.strerror}); give another file.") from None
    logger.info("%s written, %.1f MB: open it in a browser", out, out.stat().st_size / 1e6)
    if args.gallery:
        _write_gallery(args.gallery, scored, args.pictures)


def _write_gallery(file: Path, scored: dict[str, Scored], count: int) -> None:
    """Of the first run that could be scored."""
    if not scored:
        raise ConfigError(f"--gallery ({file}) has no pictures to show; the lines above say why.")
    picture = Image.fromarray(gallery(next(iter(scored.values())), count))
    try:
        with write_atomic(file) as out:
            picture.save(out, "PNG", optimize=True)
    except OSError as error:
        raise ConfigError(
            f"--gallery ({file}) cannot be written ({error.strerror}); give another file."
        ) from None
    logger.info("%s written", file)


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read."""
    if args.pictures < 0:
        raise ConfigError(f"--pictures ({args.pictures}) must be 0 or more; use 4.")
    if args.gallery and (args.gallery.suffix != ".png" or not args.pictures):
        raise ConfigError(
            f"--gallery ({args.gallery}) is a PNG of scored pictures; give it a name that ends so, and --pictures 4."
        )
    if len(args.runs) > MOST_RUNS:
        raise ConfigError(
            f"{len(args.runs)} runs are more than a page can show beside each other; give at most {MOST_RUNS}."
        )


def _score(runs: Sequence[Run], args: argparse.Namespace) -> tuple[dict[str, Scored], list[str]]:
    """The runs that can be scored, by name, and a sentence for each that cannot."""
    scored, notes = {}, []
    for run in runs:
        try:
            scored[run.name] = score(run, args.data, num_workers=args.num_workers)
        except (UnetdistError, OSError) as error:
            logger.warning("%s is reported without pictures: %s", run.name, error)
            notes.append(f"No pictures and no intervals of classes of {run.name}: {error}")
    return scored, notes


def make_parser() -> argparse.ArgumentParser:
    """All that the command line understands."""
    parser = argparse.ArgumentParser(
        "launch/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run: runs/NAME; the first is compared with",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the HTML file (default: report.html in the first run's folder)",
    )
    add("--weights", choices=("best", "last"), default="best", help="which are reported (default: best)")
    add(
        "--data",
        metavar="DIR",
        help="shards to score on: a path or URL (default: each run's own data.val, unless a server has it)",
    )
    add(
        "--pictures",
        type=int,
        default=4,
        metavar="N",
        help="of the worst and of the best images each; 0: nothing is scored anew (default: 4)",
    )
    add(
        "--gallery",
        type=Path,
        metavar="FILE.png",
        help="also one picture to show: the best and the worst of the first run beside ground truth and prediction",
    )
    add("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_script(main)
