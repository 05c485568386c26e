"""The commands `verify`, `stats` and `show` of launch/shard_dataset.py: what they understand, and what they do."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from unetdist.cli.logs import PlainConsole
from unetdist.data.cache import ShardCache
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.errors import ConfigError, one_line, printable
from unetdist.sharding import stats
from unetdist.sharding.pool import available_cores
from unetdist.storage.files import write_atomic, write_json
from unetdist.storage.folders import Folder, open_folder

DESCRIPTIONS = {
    "verify": "Read all shards: compare sizes and hashes with the manifest and indexes with their tars, decode and "
    "count every sample, and list all that is wrong. Ends with 1 if anything is.",
    "stats": "Show what a data set holds, from its manifest alone: classes, sizes, shards.",
    "show": "Draw samples beside their classes on one sheet; the same options draw the same sheet.",
}


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add all that `command`, one of `DESCRIPTIONS`, understands."""
    parser.description = DESCRIPTIONS[command]
    parser.add_argument("location", help="folder or URL of the shards")
    if command == "verify":
        parser.add_argument("--workers", type=int, default=available_cores(), help="processes (%(default)s)")
    elif command == "stats":
        parser.add_argument("--png", type=Path, metavar="FILE", help="draw the classes and sizes")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    else:
        parser.add_argument("--out", type=Path, metavar="FILE.png", help="the sheet")
        parser.add_argument("--num", type=int, default=16, metavar="N", help="samples (%(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
        parser.add_argument("--keys", nargs="+", metavar="KEY", help="these samples; default: any")
        parser.add_argument(
            "--augment",
            type=Path,
            metavar="CONFIG.yaml",
            help="show samples as the first epoch of a training with these settings sees them, before they are mixed",
        )


def run(command: str, args: argparse.Namespace) -> int:
    """Do `command`; the exit code."""
    actions = {"verify": _verify, "stats": _stats, "show": _show}
    folder = open_folder(args.location)
    return actions[command](folder, args)


def _verify(folder: Folder, args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise ConfigError(f"--workers ({args.workers}) must be 1 or more; use {available_cores()}.")
    from unetdist.sharding import verify  # loads torch, which takes seconds

    manifest = Manifest.load(folder)
    findings = verify.verify(folder, manifest, workers=args.workers)
    print(printable(verify.describe(findings, folder, manifest)))
    return 1 if findings.problems else 0


def _stats(folder: Folder, args: argparse.Namespace) -> int:
    manifest = Manifest.load(folder)
    PlainConsole(soft_wrap=True).print(stats.tables(manifest, str(folder)))
    if args.json:
        _written("--json", args.json, lambda path: write_json(path, stats.summarize(manifest)))
    if args.png:
        _written("--png", args.png, lambda path: _save(stats.draw(manifest, str(folder)), path))
    return 0


def _show(folder: Folder, args: argparse.Namespace) -> int:
    if args.out is None:
        raise ConfigError("--out is missing; give the file of the sheet, such as --out samples.png.")
    from unetdist.sharding import show  # loads torch, which takes seconds

    manifest = Manifest.load(folder)
    with _temporary_cache(manifest) as cache:
        reader = ShardReader(folder, manifest, cache=cache)
        augmenter = show.read_augmenter(args.augment, reader, seed=args.seed) if args.augment else None
        ids = show.find(reader, args.keys) if args.keys else show.choose(reader, args.num, seed=args.seed)
        shown = show.load(reader, ids, augmenter)
    sheet = show.draw(shown, Palette.from_records(manifest.palette_records))
    _written("--out", args.out, lambda path: _save(sheet, path))
    print(one_line(f"{args.out}: {len(ids)} samples of {folder}"))
    return 0


@contextmanager
def _temporary_cache(manifest: Manifest) -> Iterator[ShardCache]:
    """Room for a few shards, for servers that give only whole ones."""
    with tempfile.TemporaryDirectory(prefix="unetdist-show-") as folder:
        yield ShardCache(Path(folder), 4 * max(shard.num_bytes for shard in manifest.shards))


def _save(picture: np.ndarray, path: Path) -> None:
    with write_atomic(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def _written(option: str, path: Path, write: Callable[[Path], None]) -> None:
    try:
        write(path)
    except OSError as error:
        raise ConfigError(
            f"{option} ({path}) cannot be written ({error.strerror}); give another file."
        ) from None
