"""Turn pictures and masks into shards: `python launch/shard_dataset.py --images DIR --masks DIR ... --out DIR`."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from unetdist.data import shapes
from unetdist.data.ingest import dataset_source, shapes_source, sources, split
from unetdist.data.ingest.convert import ConvertOptions
from unetdist.data.ingest.folder import LayoutOptions
from unetdist.data.ingest.foreign import index_folder
from unetdist.data.ingest.pool import available_cores
from unetdist.data.ingest.report import describe, describe_problems, next_command
from unetdist.data.ingest.writer import write_dataset
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError, DataError
from unetdist.logs import run_script, set_up_logging

WRITE = """Write images and masks as shards: WebDataset tars, an index beside each, and manifest.json. The images'
bytes are kept as they are where anyone can decode them; masks become class indices by the colours (or ids) in the
label file. All that is wrong with the data is reported together at the end. An interrupted run continues when the
same command is given again. `shard_dataset.py index --help`: for tars that others wrote."""

INDEX = """Write index and manifest for WebDataset tars that others wrote, whose masks hold class indices 0, 1, 2 ...
and 255 where they are ignored. The tars stay as they are."""

CONFLICTS = (
    ("--shapes", "--images --masks --list --dataset", "samples come from one source"),
    ("--dataset", "--images --masks --list", "samples come from one source"),
    ("--shapes", "--image-name --mask-name", "shapes are no files"),
    ("--dataset", "--image-name --mask-name", "a dataset has columns, not file names"),
    ("--list", "--image-name --mask-name", "the list itself names the files"),
    ("--shapes", "--labels --ignore", "the shapes have their own classes"),
    ("--val-list", "--val-fraction", "either of them alone decides what goes to OUT/val"),
)
"""An option, others that would go unheeded beside it, and why."""


def main(argv: list[str] | None = None) -> int:
    """Parse, write (or index), say what was done."""
    argv = sys.argv[1:] if argv is None else argv
    set_up_logging()
    if argv[:1] == ["index"]:
        return index(index_parser().parse_args(argv[1:]))
    return write(write_parser().parse_args(argv[1:] if argv[:1] == ["write"] else argv))


def write(args: argparse.Namespace) -> int:
    """Sources to shards."""
    refuse_conflicts(args)
    source, palette = open_source(args)
    parts: dict[Path, Sequence[sources.Sample]] = {args.out: source.samples}
    if args.val_list or args.val_fraction is not None:
        train, val = (
            split.split_by_list(source.samples, args.val_list)
            if args.val_list
            else split.split_by_hash(source.samples, args.val_fraction)
        )
        parts = {args.out / "train": train, args.out / "val": val}
    account = write_dataset(
        source,
        parts,
        palette,
        convert=ConvertOptions(
            resize=args.resize,
            image_format=args.image_format,
            image_range=tuple(args.image_range) if args.image_range else None,
            mask_format=args.mask_format,
            unknown_colors=args.unknown_colors,
            skip_bad=args.skip_bad,
        ),
        layout=LayoutOptions(
            samples_per_shard=args.samples_per_shard,
            shard_size_mb=args.shard_size_mb,
            keep_order=args.keep_order,
        ),
        workers=args.workers,
        overwrite=args.overwrite,
    )
    print(account)
    print(next_command(list(parts)))
    return 0


def refuse_conflicts(args: argparse.Namespace) -> None:
    """`ConfigError` where an option that was given would go unheeded because of another one."""
    given = {"--" + name.replace("_", "-") for name, value in vars(args).items() if value not in (None, [])}
    for option, others, why in CONFLICTS:
        clash = [other for other in others.split() if {option, other} <= given]
        if clash:
            names = " and ".join(clash)
            raise ConfigError(f"{option} does not go with {names}: {why}; leave out {option} or {names}.")


def open_source(args: argparse.Namespace) -> tuple[sources.Source, Palette]:
    """The source that the arguments name, and its labels."""
    if args.shapes is not None:
        return shapes_source.from_shapes(args.shapes, seed=args.seed), shapes.PALETTE
    if args.labels is None:
        raise ConfigError(
            "--labels is missing; give the file that lists the classes, such as --labels Labels.txt."
        )
    palette = Palette.read(args.labels, ignore=args.ignore)
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


def index(args: argparse.Namespace) -> int:
    """Index and manifest for tars that others wrote."""
    palette = Palette.read(args.labels)
    outcome = index_folder(args.folder, palette, mask_ext=args.mask_ext, workers=args.workers)
    if outcome.problems:
        raise DataError("no manifest is written.\n" + describe_problems(outcome.problems, (), args.folder))
    print(describe(outcome, palette))
    print(next_command([args.folder]))
    return 0


def size(text: str) -> tuple[int, int]:
    """WxH, as in 480x360."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid WxH value: {text!r}; use 480x360 (width x height)")
    return int(match[1]), int(match[2])


def write_parser() -> argparse.ArgumentParser:
    """All that `write` understands."""
    parser = argparse.ArgumentParser("shard_dataset.py", description=WRITE)
    group = parser.add_argument_group("where the samples are (one of four)")
    group.add_argument(
        "--images", type=Path, metavar="DIR", help="images; a pair has the same folder and stem"
    )
    group.add_argument("--masks", type=Path, metavar="DIR", help="masks; may be the folder of the images")
    group.add_argument("--image-name", metavar="TEMPLATE", help='such as "{stem}_leftImg8bit.png"')
    group.add_argument("--mask-name", metavar="TEMPLATE", help='such as "{stem}_L.png"')
    group.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="a line: image mask; below --images and --masks or the list's folder",
    )
    group.add_argument(
        "--dataset", metavar="NAME", help="Hugging Face dataset: on the hub, or a local file or folder"
    )
    group.add_argument("--split", default="train", help="of the dataset (%(default)s)")
    group.add_argument("--image-column", default="image", metavar="NAME", help="of the dataset (%(default)s)")
    group.add_argument("--mask-column", default="mask", metavar="NAME", help="of the dataset (%(default)s)")
    group.add_argument("--key-column", metavar="NAME", help="of the dataset; default: the row's number")
    group.add_argument("--shapes", type=int, metavar="N", help="N pictures of circles, squares and triangles")
    group.add_argument("--seed", type=int, default=0, help="of the shapes (%(default)s)")

    group = parser.add_argument_group("classes")
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="colours and names of the classes: Labels.txt"
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a label whose pixels do not count; may be given again",
    )
    group.add_argument(
        "--mask-format",
        choices=("auto", "color", "ids"),
        default="auto",
        help="what the pixels of masks are (%(default)s)",
    )
    group.add_argument(
        "--unknown-colors",
        choices=("error", "ignore", "nearest"),
        default="error",
        help="what to do with colours that are not listed; they are always reported (%(default)s)",
    )

    group = parser.add_argument_group("images")
    group.add_argument(
        "--resize", type=size, metavar="WxH", help="images by area, masks by the nearest pixel"
    )
    group.add_argument(
        "--image-format",
        choices=("png", "jpg"),
        help="re-encode the others (baseline, quality 95); default: keep",
    )
    group.add_argument(
        "--image-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="black and white of images of more than 8 bits (0 65535)",
    )

    group = parser.add_argument_group("shards")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    group.add_argument(
        "--val-list", type=Path, metavar="FILE", help="keys for OUT/val, the others go to OUT/train"
    )
    group.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share for OUT/val, 0..1, chosen by a hash of the key; the others go to OUT/train",
    )
    group.add_argument("--samples-per-shard", type=int, metavar="N", help="at most; default: by size")
    group.add_argument("--shard-size-mb", type=float, default=256.0, metavar="MB", help="about (%(default)g)")
    group.add_argument(
        "--keep-order", action="store_true", help="sort by key; default: shuffle, by a hash of the key"
    )

    group = parser.add_argument_group("the run")
    group.add_argument("--workers", type=int, default=available_cores(), help="processes (%(default)s)")
    group.add_argument("--skip-bad", action="store_true", help="leave out bad samples, and say which")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what other options or sources made in OUT"
    )
    return parser


def index_parser() -> argparse.ArgumentParser:
    """All that `index` understands."""
    parser = argparse.ArgumentParser("shard_dataset.py index", description=INDEX)
    parser.add_argument("folder", type=Path, help="folder of the tars")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="FILE", help="colours and names of the classes"
    )
    parser.add_argument(
        "--mask-ext", default="mask.png", metavar="EXT", help="of masks in the tars (%(default)s)"
    )
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes (%(default)s)")
    return parser


if __name__ == "__main__":
    run_script(main)
