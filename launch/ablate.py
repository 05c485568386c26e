"""Train variants of a recipe with several seeds, and compare them.

python launch/ablate.py configs/ablations/camvid_small.yaml [--parallel N] [--per-image] [--section.field value ...]

The YAML names a config file (`base`), `seeds`, and `variants`: the settings that each changes. The others are compared
with the first. Runs are in RUNS_DIR/ABLATION/VARIANT_SEED. The same command continues where it was stopped and does not
repeat finished runs. After each run it prints the table and writes results.json next to the runs.
Settings on the command line are for all runs. The exit code is 0 if all runs are finished, 1 if one failed, 75 if a
signal stopped it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unetdist.apps.ablation import Ablation, Crew, read_ablation, summarise, table_of
from unetdist.cli.logs import PlainConsole, logger, run_script, set_up_logging
from unetdist.cli.settings import positive_int
from unetdist.storage.files import write_json
from unetdist.train.run_status import STOPPED_EARLY


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train what is not complete, and print the table."""
    parser = argparse.ArgumentParser(
        "launch/ablate.py",
        usage="%(prog)s FILE [--parallel N] [--per-image] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="YAML of the ablation")
    parser.add_argument("--parallel", type=positive_int, default=1, metavar="N", help="runs at a time (%(default)s)")
    parser.add_argument(
        "--per-image", action="store_true", help="also score finished runs image by image, and compare over images"
    )
    args, words = parser.parse_known_args(argv)
    ablation = read_ablation(args.file, words)
    set_up_logging()
    crew = Crew(
        scripts=Path(__file__).resolve().parent,
        command=ablation.command,
        parallel=args.parallel,
        per_image=args.per_image,
    )
    to_do = [run for run in ablation.runs if crew.next_command(run) is not None]
    logger.info("%s: %d runs, %d of them to do", ablation.folder, len(ablation.runs), len(to_do))
    failed = crew.train(to_do, after_each=lambda: publish(ablation))
    if failed is None:
        logger.info("stopped; the same command continues")
        return STOPPED_EARLY
    if not to_do:
        publish(ablation)
    for folder, reason in failed.items():
        logger.error("not finished: %s: %s", folder, reason)
    return 1 if failed else 0


def publish(ablation: Ablation) -> None:
    """Print the table, and write its numbers next to the runs."""
    summaries = summarise(ablation)
    PlainConsole().print(table_of(summaries, title=ablation.name))
    write_json(ablation.folder / "results.json", {"name": ablation.name, "variants": summaries})


if __name__ == "__main__":
    run_script(main)
