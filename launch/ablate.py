"""Train variants of a recipe with several seeds, and say what each is worth.

python launch/ablate.py configs/ablations/camvid_small.yaml [--parallel N] [--per-image] [--section.field value ...]

The YAML names a config file (`base`), `seeds`, and `variants`: the settings that each lays over the base; the first is
what the others are compared with. Each run lies in RUNS_DIR/ABLATION/VARIANT_SEED. The same command trains what is not
done yet and goes on where it was stopped; after each run it prints the table anew and writes results.json and
results.png beside the runs. Settings on the command line are for all runs. Ends with 0 if all runs are finished, 1 if
one failed, 75 if it was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unetdist.apps.ablation.outcome import summarise
from unetdist.apps.ablation.plan import Plan, read_plan
from unetdist.apps.ablation.report import picture_of, table_of
from unetdist.apps.ablation.training import Fleet
from unetdist.cli.logs import PlainConsole, logger, run_script, set_up_logging
from unetdist.storage.files import write_atomic, write_json
from unetdist.train.run_status import STOPPED_EARLY


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train what is not done, tell."""
    args, words = make_parser().parse_known_args(argv)
    plan = read_plan(args.file, words)
    set_up_logging()
    fleet = Fleet(
        scripts=Path(__file__).resolve().parent,
        command=plan.command,
        parallel=args.parallel,
        per_image=args.per_image,
    )
    to_do = [run for run in plan.runs if fleet.next_of(run) is not None]
    logger.info("%s: %d runs, %d of them to do", plan.folder, len(plan.runs), len(to_do))
    if not fleet.train(to_do, after_each=lambda: tell(plan)):
        logger.info("stopped; the same command goes on")
        return STOPPED_EARLY
    if not to_do:
        tell(plan)
    for folder, reason in fleet.failed.items():
        logger.error("not finished: %s: %s", folder, reason)
    return 1 if fleet.failed else 0


def tell(plan: Plan) -> None:
    """Print the table; write the numbers and the picture beside the runs."""
    summaries = summarise(plan)
    PlainConsole().print(table_of(summaries, title=plan.name))
    write_json(
        plan.folder / "results.json",
        {"name": plan.name, "variants": [summary.to_mapping() for summary in summaries]},
    )
    with write_atomic(plan.folder / "results.png") as out:
        Image.fromarray(picture_of(summaries, title=plan.name)).save(out, "PNG")


def parse_parallel(text: str) -> int:
    """A whole number over 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number over 0")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """What is not a setting."""
    parser = argparse.ArgumentParser(
        "launch/ablate.py",
        usage="%(prog)s FILE [--parallel N] [--per-image] [--section.field value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="YAML of the ablation")
    parser.add_argument(
        "--parallel", type=parse_parallel, default=1, metavar="N", help="runs at a time (%(default)s)"
    )
    parser.add_argument(
        "--per-image", action="store_true", help="score finished runs image by image, for a test over images"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
