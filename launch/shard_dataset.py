"""Writes images and masks as shards: `python launch/shard_dataset.py --images DIR --masks DIR ... --out DIR`.

`shard_dataset.py index` makes a data set of tars that others wrote; `verify`, `stats` and `show` examine a data set.
"""

import argparse
import sys
from collections.abc import Sequence

from unetdist.cli.logs import run_script, set_up_logging
from unetdist.data import shapes
from unetdist.data.labels import Palette
from unetdist.data.tar_index import MemberNames
from unetdist.errors import ConfigError, one_line, printable
from unetdist.sharding import command, dataset_source, foreign_tars, sources, split
from unetdist.sharding.describe import next_command
from unetdist.sharding.first_look import decide_exif, warn_of_raw_masks, with_measured_range
from unetdist.sharding.writer import index_tars, write_dataset


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    set_up_logging()
    args = command.parse(sys.argv[1:] if argv is None else argv)
    commands = {"write": write, "index": index, "verify": command.verify, "stats": command.print_stats}
    return commands.get(args.command, command.show)(args)


def write(args: argparse.Namespace) -> int:
    """Write the samples of a source as shards."""
    workers, partition = command.distribute(args)
    source, palette = open_source(args)
    copies = split.find_copies(source)
    val: Sequence[sources.RawSample] = ()
    parts: dict[str, Sequence[sources.RawSample]] = {args.out: source.samples}
    if args.val_list or args.val_fraction is not None:
        train, val = (
            split.split_by_list(source.samples, args.val_list)
            if args.val_list
            else split.split_by_hash(source.samples, args.val_fraction, copies)
        )
        out = args.out.rstrip("/")
        parts = {f"{out}/train": train, f"{out}/val": val}
    split.log_copies(copies, val)
    convert = decide_exif(command.convert_options(args), source)
    warn_of_raw_masks(convert.exif)
    if args.image_range == ["auto"]:
        convert = with_measured_range(convert, source, workers)
    layout = split.LayoutOptions(
        samples_per_shard=args.samples_per_shard, shard_size_mb=args.shard_size_mb, keep_order=args.keep_order
    )
    report = write_dataset(
        source,
        parts,
        palette,
        convert=convert,
        layout=layout,
        workers=workers,
        partition=partition,
        overwrite=args.overwrite,
    )
    return print_report(report, list(parts))


def open_source(args: argparse.Namespace) -> tuple[sources.SampleSource, Palette]:
    """The source that the arguments name, and its labels."""
    if args.shapes is not None:
        return sources.from_shapes(args.shapes, seed=args.seed), shapes.PALETTE
    palette = command.read_labels(args)
    if args.dataset:
        columns = {name: getattr(args, name) for name in ("image_column", "mask_column", "key_column")}
        return dataset_source.from_dataset(args.dataset, split=args.split, **columns), palette
    if args.list:
        return sources.from_list(args.list, images=args.images, masks=args.masks), palette
    if not (args.images and args.masks):
        raise ConfigError("no source; give --images DIR --masks DIR, --list FILE, --dataset NAME or --shapes N.")
    names = {"image_name": args.image_name, "mask_name": args.mask_name}
    return sources.from_folders(args.images, args.masks, **names), palette


def index(args: argparse.Namespace) -> int:
    """Write index and manifest for tars that others wrote."""
    workers, partition = command.distribute(args)
    palette = command.read_labels(args)
    tars = foreign_tars.find_tars(args.location, args.out)
    template = args.mask_name or (args.mask_ext and "{stem}." + args.mask_ext.lstrip("."))
    names = (
        MemberNames(template, args.image_name) if template else foreign_tars.guess_names(tars, image=args.image_name)
    )
    convert = command.convert_options(args)
    warn_of_raw_masks(convert.exif)
    report = index_tars(tars, names, palette, convert=convert, workers=workers, partition=partition)
    return print_report(report, [tars.out.where("")])


def print_report(report: str | None, folders: Sequence[str]) -> int:
    """Print the report, unless another process finishes the data set."""
    if report is not None:
        print(printable(report))
        print(one_line(next_command(folders)))
    return 0


if __name__ == "__main__":
    run_script(main)
