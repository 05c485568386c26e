"""Train variants of a recipe with several seeds, and compare them.

The YAML names a config file (`base`), `seeds`, and `variants`: the settings that each changes. The others are compared
with the first. Runs are in RUNS_DIR/ABLATION/VARIANT_SEED. The same command continues where it was stopped and does not
repeat finished runs. After each run it prints a table and writes results.json next to the runs: mIoU of the last
weights, its mean and deviation over seeds, and the difference to the first variant with p over seeds and over images;
frames of one film make the latter too confident. Settings on the command line are for all runs. The exit code is 0 if
all runs are finished, 1 if one failed, 75 if a signal stopped it.
"""

from collections.abc import Sequence
from pathlib import Path

from unetdist.cli import settings
from unetdist.cli.command_line import Options, asks_for_help, positive_int
from unetdist.cli.commands import typed
from unetdist.cli.logs import set_up_logging
from unetdist.commands.ablate.ablation import Ablation, read_ablation, summarise, table_of
from unetdist.errors import ConfigError
from unetdist.storage.files import write_json
from unetdist.train.config import Config

EXAMPLES = ("my_ablation.yaml", "my_ablation.yaml --parallel 2 --trainer.max_steps 500")


def main(argv: Sequence[str]) -> int:
    """Parse, train what is not complete, and print the table."""
    own = Options(typed("ablate"), usage=f"{typed('ablate')} FILE [--section.field value ...]")
    own.add_argument("file", type=Path, metavar="FILE", help="YAML of the ablation")
    own.add_argument("--parallel", type=positive_int, default=1, metavar="N", help="runs at a time (%(default)s)")
    images = "also score finished runs image by image, and compare over images"
    own.add_argument("--per-image", action="store_true", help=images)
    if asks_for_help(argv):  # before FILE is missed
        settings.parse(Config, argv, prog=typed("ablate"), description=__doc__, examples=EXAMPLES, own=own)
    args, words = own.parse_known_args(argv)
    if args.file.suffix not in (".yaml", ".yml"):  # the value of a setting, of which this parser knows nothing
        raise ConfigError(f"FILE ({args.file}) must be the YAML of the ablation, before all settings.")
    ablation = read_ablation(args.file, words, per_image=args.per_image)
    set_up_logging()
    return ablation.complete(args.parallel, after_each=lambda: publish(ablation))


def publish(ablation: Ablation) -> None:
    """Print the table, and write its numbers next to the runs."""
    summaries = summarise(ablation)
    print(f"\n{table_of(summaries)}", flush=True)
    write_json(ablation.folder / "results.json", {"name": ablation.folder.name, "variants": summaries})
