"""Show a run, or compare several, in one HTML file: `unetdist report runs/x [runs/y ...]`.

The page has curves, classes with intervals, the confusion matrix, the worst and best validation images, the settings
that differ, and how the runs went. It needs no network and no other file. For the images and the intervals, the
weights are scored on the run's data.val, if that is on this machine, or on --data.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdist.cli.command_line import Options
from unetdist.cli.commands import typed
from unetdist.cli.logs import logger, set_up_logging
from unetdist.commands.report.charts import RUN_STYLES
from unetdist.errors import ConfigError, UnetdistError, writable
from unetdist.storage.files import write_text

if TYPE_CHECKING:
    from unetdist.commands.report.run import ReportedRun


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = Options(typed("report"), table="report", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders runs/NAME, compared with the first")
    add("--out", type=Path, metavar="FILE", help="the HTML file (default: report.html in the first run's folder)")
    add("--weights", choices=("best", "last"), default="best", help="which weights (default: best)")
    add("--data", metavar="DIR", help="shards to score on, a path or URL (default: data.val, unless a server has it)")
    add("--pictures", type=int, default=4, metavar="N", help="worst and best images to show; 0: none (default: 4)")
    add("--num-workers", type=int, default=2, help="loader processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.pictures < 0:
        raise ConfigError(f"--pictures ({args.pictures}) must be 0 or more; use 4.")
    if len(args.runs) > len(RUN_STYLES):
        raise ConfigError(f"{len(args.runs)} runs do not fit on one page; give at most {len(RUN_STYLES)}.")
    from unetdist.commands.report.page import render
    from unetdist.commands.report.run import read_runs

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
    return 0


def _score(runs: "Sequence[ReportedRun]", args: argparse.Namespace) -> "tuple[list[ReportedRun], list[str]]":
    """Return the runs, scored where that is possible, and a sentence for each of the others."""
    from unetdist.commands.report.run import score_run

    scored, notes = list(runs), []
    for index, run in enumerate(runs):
        try:
            scored[index] = replace(run, scored=score_run(run, args.data, num_workers=args.num_workers))
        except (UnetdistError, OSError) as error:
            logger.warning("%s is reported without pictures: %s", run.name, error)
            notes.append(f"No pictures and no class intervals for {run.name}: {error}")
    return scored, notes
