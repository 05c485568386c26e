"""What `launch/shard_dataset.py write` and `index` understand."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from unetdist.cli.logs import logger, set_up_logging
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.sharding.convert import MAX_PIXELS, ConvertOptions
from unetdist.sharding.pool import available_cores
from unetdist.sharding.share import find_share
from unetdist.sharding.writer import RunOptions

WRITE = """Write images and masks as shards: WebDataset tars, an index beside each, and manifest.json. The images'
pixels are kept as they are where anyone can decode them; masks become class indices by the colours (or ids) in the
label file. All that is wrong with the data is reported together at the end. An interrupted run continues when the
same command is given again. `shard_dataset.py index --help`: for tars that others wrote; also verify, stats, show."""

INDEX = """Write index and manifest for WebDataset tars that others wrote. The tars stay as they are; their masks are
read through the labels whenever a sample is read."""

SEVERAL = """Several processes share the work if they are given the same command: under `accelerate launch` or torchrun,
as tasks of a SLURM array, or each with its own --rank R and a common --world-size N (--rank 0 --world-size 1 works
alone, even in an array). Whoever finishes last writes the manifest. A second run into one folder is refused while the
first one works, but only in a local folder: URLs know no locks. What comes from URLs, or goes there, passes through
the folder for temporary files (TMPDIR), a shard for each worker."""

CONFLICTS = (
    ("--shapes", "--images --masks --list --dataset", "samples come from one source"),
    ("--dataset", "--images --masks --list", "samples come from one source"),
    ("--shapes", "--image-name --mask-name", "shapes are no files"),
    ("--dataset", "--image-name --mask-name", "a dataset has columns, not file names"),
    ("--list", "--image-name --mask-name", "the list itself names the files"),
    ("--shapes", "--labels --ignore", "the shapes have their own classes"),
    ("--val-list", "--val-fraction", "either of them alone decides what goes to OUT/val"),
    ("--mask-ext", "--mask-name", "either of them alone tells which members are masks"),
)
"""An option, others that would go unheeded beside it, and why."""


def refuse_conflicts(args: argparse.Namespace) -> None:
    """`ConfigError` where an option that was given would go unheeded because of another one."""
    given = {"--" + name.replace("_", "-") for name, value in vars(args).items() if value not in (None, [])}
    for option, others, why in CONFLICTS:
        clash = [other for other in others.split() if {option, other} <= given]
        if clash:
            names = " and ".join(clash)
            raise ConfigError(f"{option} does not go with {names}: {why}; leave out {option} or {names}.")


def run_options(args: argparse.Namespace) -> RunOptions:
    """How the work is shared; logging is set up for this process's place."""
    share = find_share(rank=args.rank, world_size=args.world_size)
    if share.is_launched:
        set_up_logging(rank=share.rank, world_size=share.world_size)
    elif share.is_all and "ACCELERATE_MIXED_PRECISION" in os.environ and _asked_processes() > 1:
        logger.warning(
            "accelerate launch started one process only, which does all the work; without GPUs it starts several "
            "with --config_file configs/accelerate/cpu.yaml."
        )
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if share.is_launched else 1
    return RunOptions(
        workers=args.workers or max(1, available_cores() // local_world),
        overwrite=getattr(args, "overwrite", False),
        share=share,
    )


def _asked_processes() -> int:
    from unetdist.distributed.launch_check import asked_processes  # loads Accelerate, which takes seconds

    return asked_processes() or 1


def convert_options(args: argparse.Namespace) -> ConvertOptions:
    """What is done to a sample; where `index` has no such option, nothing is."""
    given = vars(args)
    return ConvertOptions(
        resize=given.get("resize"),
        image_format=given.get("image_format"),
        image_range=None if wants_measured_range(args) else _image_range(given.get("image_range")),
        exif=args.exif,
        seekable=not given.get("keep_bytes", False),
        mask_format=args.mask_format,
        unknown_colors=args.unknown_colors,
        skip_bad=given.get("skip_bad", False),
        max_pixels=args.max_pixels,
    )


def read_as_ids(args: argparse.Namespace, palette: Palette) -> None:
    """Read masks as ids if the label file has no colours, and log how ids are assigned.

    Raises:
        ConfigError: The masks are to be read as colours.
    """
    if args.mask_format == "color":
        raise ConfigError(
            f"--mask-format (color) needs colours, and {args.labels} lists none; write 'R G B name' lines."
        )
    args.mask_format = "ids"
    first, last = palette.labels[0], palette.labels[-1]
    logger.info(
        "%s lists no colours: masks are read as ids, %d is %s, ..., %d is %s; predictions get colours of their own.",
        *(args.labels, first.id, first.name, last.id, last.name),
    )


def wants_measured_range(args: argparse.Namespace) -> bool:
    """Whether the range of the images' values must be measured first."""
    return vars(args).get("image_range") == ["auto"]


def _image_range(words: Sequence[str] | None) -> tuple[float, float] | None:
    if words is None:
        return None
    try:
        low, high = map(float, words)
    except ValueError:
        raise ConfigError(
            f"--image-range ({' '.join(words)}) must be LOW HIGH, such as 0 4095, or auto; give one of these."
        ) from None
    return low, high


def size(text: str) -> tuple[int, int]:
    """WxH, as in 480x360."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid WxH value: {text!r}; use 480x360 (width x height)")
    return int(match[1]), int(match[2])


def write_parser() -> argparse.ArgumentParser:
    """All that `write` understands."""
    parser = argparse.ArgumentParser("launch/shard_dataset.py", description=WRITE, epilog=SEVERAL)
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

    _add_classes(parser)

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
        nargs="+",
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 255 in images of more than 8 bits (0 65535); auto: as measured over all images",
    )

    _add_exif(group)
    group.add_argument(
        "--keep-bytes",
        action="store_true",
        help="leave JPEGs' bytes as they are, without the restart markers by which crops decode fast",
    )

    group = parser.add_argument_group("shards")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the shards, or its URL (s3://...)"
    )
    group.add_argument(
        "--val-list", type=Path, metavar="FILE", help="keys for OUT/val, the others go to OUT/train"
    )
    group.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share for OUT/val, 0..1, chosen by a hash of the key (of the file, where an image has copies); "
        "the others go to OUT/train",
    )
    group.add_argument("--samples-per-shard", type=int, metavar="N", help="at most; default: by size")
    group.add_argument("--shard-size-mb", type=float, default=256.0, metavar="MB", help="about (%(default)g)")
    group.add_argument(
        "--keep-order", action="store_true", help="sort by key; default: shuffle, by a hash of the key"
    )

    group = _add_run(parser)
    group.add_argument("--skip-bad", action="store_true", help="leave out bad samples, and say which")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what other options or sources made in OUT"
    )
    return parser


def index_parser() -> argparse.ArgumentParser:
    """All that `index` understands."""
    parser = argparse.ArgumentParser("launch/shard_dataset.py index", description=INDEX, epilog=SEVERAL)
    parser.add_argument(
        "location",
        help="folder of the tars or its URL; or a tar, https://host/{000..099}.tar, or a text file with one a line",
    )
    parser.add_argument("--out", metavar="DIR", help="of index and manifest; default: beside the tars")
    parser.add_argument("--mask-ext", metavar="EXT", help="of the masks, such as seg.png; default: a guess")
    parser.add_argument("--mask-name", metavar="TEMPLATE", help='of the masks, such as "{stem}_mask.png"')
    parser.add_argument(
        "--image-name", metavar="TEMPLATE", help="of the images; default: the other picture of the key"
    )
    _add_classes(parser)
    _add_exif(parser)
    _add_run(parser)
    return parser


def _add_classes(parser: argparse.ArgumentParser) -> None:
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


def _add_exif(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--exif",
        choices=("raw", "upright"),
        help="for images whose EXIF orientation does not change their size: whether masks were drawn on the pixels as "
        "stored (raw; but predict.py turns such images upright) or as viewers show them (upright); default: decided by "
        "the other images of the data set",
    )


def _add_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="a larger picture is a bad sample, before it is decoded (%(default)s)",
    )
    group.add_argument("--workers", type=int, help="processes of each; default: this machine's cores")
    group.add_argument(
        "--rank", type=int, metavar="R", help="this process's place, 0..N-1; default: the launcher's"
    )
    group.add_argument("--world-size", type=int, metavar="N", help="processes that share the work")
    return group
