"""Turn pictures and masks into shards: `python launch/shard_dataset.py --images DIR --masks DIR ... --out DIR`.

`shard_dataset.py index` makes a data set of tars that others wrote; verify, stats and show look at one.
"""

import argparse
import sys
from collections.abc import Sequence

from unetdist.cli.logs import run_script, set_up_logging
from unetdist.data import shapes
from unetdist.data.labels import Palette
from unetdist.data.tar_index import MemberNames
from unetdist.errors import ConfigError, one_line, printable
from unetdist.sharding import command_line, dataset_source, shapes_source, sources, split, tar_source
from unetdist.sharding import inspect_command as command
from unetdist.sharding.duplicates import find_copies, tell_copies, tell_leaks
from unetdist.sharding.exif import decide_exif, tell_raw
from unetdist.sharding.layout import LayoutOptions
from unetdist.sharding.report import next_command
from unetdist.sharding.value_range import measured
from unetdist.sharding.writer import index_tars, write_dataset


def main(argv: list[str] | None = None) -> int:
    """Parse, do it, say what was done."""
    argv = sys.argv[1:] if argv is None else argv
    set_up_logging()
    match argv[:1]:
        case ["index"]:
            return index(command_line.index_parser().parse_args(argv[1:]))
        case [("verify" | "stats" | "show") as name]:
            parser = argparse.ArgumentParser(f"launch/shard_dataset.py {name}")
            command.add_arguments(parser, name)
            return command.run(name, parser.parse_args(argv[1:]))
        case ["write"]:
            argv = argv[1:]
    return write(command_line.write_parser().parse_args(argv))


def write(args: argparse.Namespace) -> int:
    """Sources to shards."""
    command_line.refuse_conflicts(args)
    options = command_line.run_options(args)
    source, palette = open_source(args)
    copies = find_copies(source)
    tell_copies(copies)
    parts: dict[str, Sequence[sources.Sample]] = {args.out: source.samples}
    if args.val_list or args.val_fraction is not None:
        train, val = (
            split.split_by_list(source.samples, args.val_list)
            if args.val_list
            else split.split_by_hash(source.samples, args.val_fraction, copies)
        )
        tell_leaks(train, val, copies)
        out = args.out.rstrip("/")
        parts = {f"{out}/train": train, f"{out}/val": val}
    convert = decide_exif(command_line.convert_options(args), source)
    tell_raw(convert.exif)
    if command_line.wants_measured_range(args):
        convert = measured(convert, source, options.workers)
    account = write_dataset(
        source,
        parts,
        palette,
        convert=convert,
        layout=LayoutOptions(
            samples_per_shard=args.samples_per_shard,
            shard_size_mb=args.shard_size_mb,
            keep_order=args.keep_order,
        ),
        options=options,
    )
    return tell(account, list(parts))


def open_source(args: argparse.Namespace) -> tuple[sources.Source, Palette]:
    """The source that the arguments name, and its labels."""
    if args.shapes is not None:
        return shapes_source.from_shapes(args.shapes, seed=args.seed), shapes.PALETTE
    palette = read_labels(args)
    if args.dataset:
        return dataset_source.from_dataset(
            args.dataset,
            split=args.split,
            image_column=args.image_column,
            mask_column=args.mask_column,
            key_column=args.key_column,
        ), palette
    if args.list:
        return sources.from_list(args.list, images=args.images, masks=args.masks), palette
    if not (args.images and args.masks):
        raise ConfigError(
            "no source; give --images DIR --masks DIR, --list FILE, --dataset NAME or --shapes N."
        )
    return sources.from_folders(
        args.images, args.masks, image_name=args.image_name, mask_name=args.mask_name
    ), palette


def read_labels(args: argparse.Namespace) -> Palette:
    """The classes."""
    if args.labels is None:
        raise ConfigError(
            "--labels is missing; give the file that lists the classes, such as --labels Labels.txt."
        )
    palette = Palette.read(args.labels, ignore=args.ignore)
    if not palette.has_colors:
        command_line.read_as_ids(args, palette)
    return palette


def index(args: argparse.Namespace) -> int:
    """Index and manifest for tars that others wrote."""
    command_line.refuse_conflicts(args)
    options = command_line.run_options(args)
    palette = read_labels(args)
    tars = tar_source.find_tars(args.location, args.out)
    template = args.mask_name or (args.mask_ext and "{stem}." + args.mask_ext.lstrip("."))
    names = (
        MemberNames(template, args.image_name)
        if template
        else tar_source.guess_names(tars, image=args.image_name)
    )
    convert = command_line.convert_options(args)
    tell_raw(convert.exif)
    account = index_tars(tars, names, palette, convert=convert, options=options)
    return tell(account, [tars.out.where("")])


def tell(account: str | None, folders: Sequence[str]) -> int:
    """Print the account, unless it is for another process to give."""
    if account is not None:
        print(printable(account))
        print(one_line(next_command(folders)))
    return 0


if __name__ == "__main__":
    run_script(main)
