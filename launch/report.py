"""Show a run, or compare several, in one HTML file: `python launch/report.py runs/x [runs/y ...]`.

The page has curves, classes with intervals, the confusion matrix, the worst and best validation images, the settings
that differ, and how the runs went. It needs no network and no other file. For the images and the intervals, the
weights are scored on the run's data.val, if that is on this machine, or on --data.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from unetdist.apps.report.cards import draw_gallery
from unetdist.apps.report.page import MAX_RUNS, render
from unetdist.apps.report.run import ReportedRun, read_runs, score_run
from unetdist.cli.logs import logger, run_script, set_up_logging
from unetdist.errors import ConfigError, UnetdistError, writable
from unetdist.storage.files import write_atomic, write_text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = make_parser().parse_args(argv)
    _check(args)
    set_up_logging()
    runs = read_runs(args.runs, args.weights)
    notes = ["No pictures and no class intervals, because of --pictures 0."]
    if args.pictures:
        runs, notes = _score(runs, args)
    out = args.out or args.runs[0] / "report.html"
    page = render(runs, num_pictures=args.pictures, notes=notes)
    with writable("--out", out):
        write_text(out, page)
    logger.info("%s written, %.1f MB: open it in a browser", out, out.stat().st_size / 1e6)
    if args.gallery:
        _write_gallery(args.gallery, runs, args.pictures)


def _write_gallery(file: Path, runs: Sequence[ReportedRun], count: int) -> None:
    """Draw the first run that could be scored."""
    scored = next((run.scored for run in runs if run.scored), None)
    if scored is None:
        raise ConfigError(f"--gallery ({file}) has no pictures to show; see the lines above.")
    picture = Image.fromarray(draw_gallery(scored, count))
    with writable("--gallery", file), write_atomic(file) as out:
        picture.save(out, "PNG", optimize=True)
    logger.info("%s written", file)


def _check(args: argparse.Namespace) -> None:
    """Refuse bad arguments before anything is read."""
    if args.pictures < 0:
        raise ConfigError(f"--pictures ({args.pictures}) must be 0 or more; use 4.")
    if args.gallery and (args.gallery.suffix != ".png" or not args.pictures):
        raise ConfigError(f"--gallery ({args.gallery}) must end with .png and needs --pictures of at least 1.")
    if len(args.runs) > MAX_RUNS:
        raise ConfigError(f"{len(args.runs)} runs do not fit on one page; give at most {MAX_RUNS}.")


def _score(runs: Sequence[ReportedRun], args: argparse.Namespace) -> tuple[list[ReportedRun], list[str]]:
    """Return the runs, scored where that is possible, and a sentence for each of the others."""
    scored, notes = list(runs), []
    for index, run in enumerate(runs):
        try:
            scored[index] = replace(run, scored=score_run(run, args.data, num_workers=args.num_workers))
        except (UnetdistError, OSError) as error:
            logger.warning("%s is reported without pictures: %s", run.name, error)
            notes.append(f"No pictures and no class intervals for {run.name}: {error}")
    return scored, notes


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        "launch/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run: runs/NAME; the others are compared with the first",
    )
    add("--out", type=Path, metavar="FILE", help="the HTML file (default: report.html in the first run's folder)")
    add("--weights", choices=("best", "last"), default="best", help="which weights (default: best)")
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
        help="number of the worst, and of the best images to show; 0: nothing is scored (default: 4)",
    )
    add(
        "--gallery",
        type=Path,
        metavar="FILE.png",
        help="also draw the best and worst images of the first run with ground truth and prediction",
    )
    add("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_script(main)
