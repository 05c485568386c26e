"""Writes images and masks as shards: `unetdist shard --images DIR --masks DIR --labels Labels.txt --out DIR`.

`unetdist shard index` makes a data set of tars that others wrote; `verify`, `stats` and `show` examine a data set.
"""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from PIL import Image

from unetdist.cli.command_line import Options, positive_int
from unetdist.cli.commands import typed
from unetdist.cli.logs import logger, set_up_logging
from unetdist.data import shapes
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.data.tar_index import MemberNames
from unetdist.distributed.hardware import num_cores
from unetdist.errors import ConfigError, one_line, printable, writable
from unetdist.sharding import dataset_source, foreign_tars, sources, split
from unetdist.sharding.convert import MAX_PIXELS, ConvertOptions
from unetdist.sharding.describe import describe_manifest, draw_sheet, next_command
from unetdist.sharding.first_look import decide_exif, warn_of_raw_masks, with_measured_range
from unetdist.sharding.plan import WorkPartition, find_partition
from unetdist.sharding.writer import index_tars, write_dataset
from unetdist.storage.files import write_atomic
from unetdist.storage.folders import open_folder

DESCRIPTIONS = {
    "write": "Write images and masks as shards: WebDataset tars, an index next to each, and manifest.json. Images keep "
    "their pixels if every decoder reads them alike; masks become class indices by the colours (or ids) in the label "
    "file. Missing files are reported at once, problems of images and masks together at the end. An interrupted run "
    "continues when the same command is given again. Other commands: index (for tars that others wrote), verify, "
    "stats, show; see for example `unetdist shard index --help`.",
    "index": "Write index and manifest for WebDataset tars that others wrote. The tars do not change; their masks are "
    "read through the labels whenever a sample is read.",
    "verify": "Read all shards: compare sizes and hashes with the manifest and indexes with their tars, decode and "
    "count every sample, and list all problems. Exit code 1 if there are any.",
    "stats": "Show classes, sizes and shards of a data set, from its manifest alone.",
    "show": "Draw samples and their classes on one sheet; the same options draw the same sheet.",
}

# Options that most users need.
FIRST = ("--images", "--masks", "--labels", "--ignore", "--val-fraction", "--resize", "--out", "--dataset", "--shapes")

SEVERAL = """Several processes share the work if they run the same command: under `accelerate launch` or torchrun,
as tasks of a SLURM array, or each with its own --rank R and the same --world-size N (--rank 0 --world-size 1 works
alone, even in an array). The last to finish writes the manifest. A second run into a folder that is being written is
refused, but only in a local folder, because URLs cannot be locked. Data from or for URLs pass through the folder for
temporary files (TMPDIR), one shard for each worker."""

# An option, others that it would make useless, and why.
CONFLICTS = (
    ("--shapes", "--images --masks --list --dataset", "samples come from one source"),
    ("--dataset", "--images --masks --list", "samples come from one source"),
    ("--shapes", "--image-name --mask-name", "shapes are not files"),
    ("--dataset", "--image-name --mask-name", "a dataset has columns, not file names"),
    ("--list", "--image-name --mask-name", "the list itself names the files"),
    ("--shapes", "--labels --ignore", "the shapes have their own classes"),
    ("--val-list", "--val-fraction", "each of them alone decides what goes to OUT/val"),
    ("--mask-ext", "--mask-name", "each of them alone tells which members are masks"),
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; `write` is the default command."""
    # `write` needs no name, because most users need only this command.
    name, words = (argv[0], argv[1:]) if argv and argv[0] in DESCRIPTIONS else ("write", argv)
    parser = Options(
        typed("shard") if name == "write" else f"{typed('shard')} {name}",
        table="shard",
        usage="%(prog)s --images DIR --masks DIR --labels FILE --out DIR [...]" if name == "write" else None,
        first=FIRST if name == "write" else (),
        description=DESCRIPTIONS[name],
        epilog=SEVERAL if name in ("write", "index") else None,
    )
    if name in ("verify", "stats", "show"):
        parser.add_argument("location", help="folder or URL of the shards")
    adders = {"write": _add_write, "index": _add_index, "verify": _add_verify, "show": _add_show}
    if name in adders:
        adders[name](parser)
    args = parser.parse_args(words)
    args.command = name
    _refuse_conflicts(args)
    return args


def _refuse_conflicts(args: argparse.Namespace) -> None:
    """`ConfigError` if one option makes another one useless."""
    given = {"--" + name.replace("_", "-") for name, value in vars(args).items() if value not in (None, [])}
    for option, others, why in CONFLICTS:
        clash = [other for other in others.split() if {option, other} <= given]
        if clash:
            names = " and ".join(clash)
            raise ConfigError(f"{option} does not go with {names}: {why}; leave out {option} or {names}.")


def _add_write(parser: argparse.ArgumentParser) -> None:
    _add_sources(parser)
    _add_classes(parser)
    add = parser.add_argument_group("images").add_argument
    add("--resize", type=size, metavar="WxH", help="images by area, masks by the nearest pixel")
    add("--image-format", choices=("png", "jpg"), help="re-encode others (jpg: quality 95); default: keep")
    values = "values that become 0 and 255 in images of more than 8 bits (0 65535); auto: measured over all images"
    add("--image-range", nargs="+", metavar=("LOW", "HIGH"), help=values)
    _add_exif(parser)
    unchanged = "keep JPEG files unchanged, without the restart markers that make decoding of crops fast"
    add("--keep-bytes", action="store_true", help=unchanged)
    add = parser.add_argument_group("shards").add_argument
    add("--out", required=True, metavar="DIR", help="folder of the shards, or its URL (s3://...)")
    add("--val-list", type=Path, metavar="FILE", help="keys for OUT/val, the others go to OUT/train")
    fraction = "fraction for OUT/val, 0..1, chosen by a hash of the key, or of the file; the others go to OUT/train"
    add("--val-fraction", type=float, metavar="F", help=fraction)
    add("--samples-per-shard", type=int, metavar="N", help="maximum; default: by size")
    add("--shard-size-mb", type=float, default=256.0, metavar="MB", help="approximate (%(default)g)")
    add("--keep-order", action="store_true", help="sort by key; default: shuffle, by a hash of the key")
    add = _add_run(parser).add_argument
    add("--skip-bad", action="store_true", help="leave out bad samples, and list them")
    add("--overwrite", action="store_true", help="replace what other options or sources made in OUT")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where the samples are (one of four)").add_argument
    add("--images", type=Path, metavar="DIR", help="images; a pair has the same folder and stem")
    add("--masks", type=Path, metavar="DIR", help="masks; may be the folder of the images")
    add("--image-name", metavar="TEMPLATE", help='such as "{stem}_leftImg8bit.png"')
    add("--mask-name", metavar="TEMPLATE", help='such as "{stem}_L.png"')
    in_list = "one `image mask` per line, below --images and --masks or the list's folder"
    add("--list", type=Path, metavar="FILE", help=in_list)
    add("--dataset", metavar="NAME", help="Hugging Face dataset: on the hub, or a local file or folder")
    add("--split", default="train", help="split of the dataset (%(default)s)")
    add("--image-column", default="image", metavar="NAME", help="column of the dataset (%(default)s)")
    add("--mask-column", default="mask", metavar="NAME", help="column of the dataset (%(default)s)")
    add("--key-column", metavar="NAME", help="column of the dataset; default: the row's number")
    add("--shapes", type=int, metavar="N", help="N images of circles, squares and triangles")
    add("--seed", type=int, default=0, help="seed of the shapes (%(default)s)")


def _add_classes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("classes").add_argument
    add("--labels", type=Path, metavar="FILE", help="colours and names of the classes: Labels.txt")
    ignored = "a label whose pixels do not count; may be repeated"
    add("--ignore", action="append", default=[], metavar="NAME", help=ignored)
    formats = ("auto", "color", "ids")
    add("--mask-format", choices=formats, default="auto", help="meaning of mask pixels (%(default)s)")
    unknown = "what to do with colours that are not listed; they are always reported (%(default)s)"
    add("--unknown-colors", choices=("error", "ignore", "nearest"), default="error", help=unknown)


def _add_exif(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exif",
        choices=("raw", "upright"),
        help="for images whose EXIF orientation does not change their size: whether masks were drawn on the pixels as "
        "stored (raw; but predict turns such images upright) or as viewers show them (upright); default: as in the "
        "other images of the data set",
    )


def _add_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("the run")
    add = group.add_argument
    limit = "a larger image or mask is a bad sample, before it is decoded (%(default)s)"
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=limit)
    add("--workers", type=positive_int, help="worker processes; default: this machine's cores")
    add("--rank", type=int, metavar="R", help="rank of this process, 0..N-1; default: the launcher's")
    add("--world-size", type=int, metavar="N", help="number of processes that share the work")
    return group


def _add_index(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    places = "folder of the tars or its URL; or a tar, https://host/{000..099}.tar, or a text file with one per line"
    add("location", help=places)
    add("--out", metavar="DIR", help="folder of index and manifest; default: next to the tars")
    add("--mask-ext", metavar="EXT", help="extension of the masks, such as seg.png; default: a guess")
    add("--mask-name", metavar="TEMPLATE", help='names of the masks, such as "{stem}_mask.png"')
    add("--image-name", metavar="TEMPLATE", help="names of the images; default: the key's other picture")
    _add_classes(parser)
    _add_exif(parser)
    _add_run(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive_int, default=num_cores(), help="processes (%(default)s)")


def _add_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default="samples.png", metavar="FILE.png", help="the sheet (%(default)s)")
    add("--num", type=positive_int, default=16, metavar="N", help="number of samples (%(default)s)")
    add("--seed", type=int, default=0, help="seed for the choice of samples (%(default)s)")
    add("--keys", nargs="+", metavar="KEY", help="keys of the samples; default: a choice by --seed")


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code."""
    set_up_logging()
    args = parse(argv)
    commands = {"write": write, "index": index, "verify": verify, "stats": print_stats}
    return commands.get(args.command, show)(args)


def write(args: argparse.Namespace) -> int:
    """Write the samples of a source as shards."""
    workers, partition = distribute(args)
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
    convert = decide_exif(convert_options(args), source)
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
    palette = read_labels(args)
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
    workers, partition = distribute(args)
    palette = read_labels(args)
    tars = foreign_tars.find_tars(args.location, args.out)
    template = args.mask_name or (args.mask_ext and "{stem}." + args.mask_ext.lstrip("."))
    names = (
        MemberNames(template, args.image_name) if template else foreign_tars.guess_names(tars, image=args.image_name)
    )
    convert = convert_options(args)
    warn_of_raw_masks(convert.exif)
    report = index_tars(tars, names, palette, convert=convert, workers=workers, partition=partition)
    return print_report(report, [tars.out.where("")])


def print_report(report: str | None, folders: Sequence[str]) -> int:
    """Print the report, unless another process finishes the data set."""
    if report is not None:
        print(printable(report))
        print(one_line(next_command(folders)))
    return 0


def size(text: str) -> tuple[int, int]:
    """WxH, as in 480x360."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid WxH value: {text!r}; use 480x360 (width x height)")
    return int(match[1]), int(match[2])


def distribute(args: argparse.Namespace) -> tuple[int, WorkPartition]:
    """Number of worker processes, and the part of the work for this process; sets up its log."""
    partition = find_partition(rank=args.rank, world_size=args.world_size)
    if partition.is_launched:
        set_up_logging(rank=partition.rank, world_size=partition.world_size)
    # Processes of one machine share its cores.
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if partition.is_launched else 1
    return args.workers or max(1, num_cores() // local_world), partition


def convert_options(args: argparse.Namespace) -> ConvertOptions:
    """How samples are converted; `index` has no options that change images."""
    given = {field.name: getattr(args, field.name) for field in fields(ConvertOptions) if hasattr(args, field.name)}
    given["image_range"] = _image_range(given.get("image_range"))
    return ConvertOptions(**given, seekable=not getattr(args, "keep_bytes", False))


def _image_range(words: list[str] | None) -> tuple[float, float] | None:
    if words in (None, ["auto"]):
        return None
    try:
        low, high = map(float, words or [])
    except ValueError:
        raise ConfigError(
            f"--image-range ({' '.join(words or [])}) must be LOW HIGH, such as 0 4095, or auto."
        ) from None
    return low, high


def read_labels(args: argparse.Namespace) -> Palette:
    """The classes; masks are read as ids if the label file has no colours."""
    if args.labels is None:
        raise ConfigError("--labels is missing; give the file that lists the classes, such as --labels Labels.txt.")
    palette = Palette.read(args.labels, ignore=args.ignore)
    if palette.has_colors:
        return palette
    if args.mask_format == "color":
        raise ConfigError(f"--mask-format (color) needs colours, but {args.labels} has none; write 'R G B name' lines.")
    args.mask_format = "ids"
    first, last = palette.labels[0], palette.labels[-1]
    logger.info(
        "%s has no colours: masks are read as ids, %d is %s, ..., %d is %s; predictions get colours of their own.",
        *(args.labels, first.id, first.name, last.id, last.name),
    )
    return palette


def verify(args: argparse.Namespace) -> int:
    """Verify a data set; the exit code."""
    from unetdist.sharding import verify  # loads torch, which takes seconds

    folder = open_folder(args.location)
    manifest = Manifest.load(folder)
    findings = verify.verify(folder, manifest, workers=args.workers)
    print(printable(verify.describe(findings, folder, manifest)))
    return 1 if findings.problems else 0


def print_stats(args: argparse.Namespace) -> int:
    """Print what a data set contains."""
    folder = open_folder(args.location)
    print(printable(describe_manifest(Manifest.load(folder), folder)))
    return 0


def show(args: argparse.Namespace) -> int:
    """Draw a sheet of samples."""
    folder = open_folder(args.location)
    sheet = draw_sheet(folder, keys=args.keys, num=args.num, seed=args.seed)
    with writable("--out", args.out), write_atomic(args.out) as file:
        Image.fromarray(sheet).save(file, "PNG")
    print(one_line(f"{args.out}: samples of {folder}"))
    return 0
