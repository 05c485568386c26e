"""Describes a data set: all its problems, or its contents, samples on a sheet and the next command."""

import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from unetdist.cli.commands import typed
from unetdist.cli.credentials import mask as mask_credentials
from unetdist.cli.logs import progress
from unetdist.data.cache import ShardCache
from unetdist.data.drawing import gallery
from unetdist.data.labels import Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import MaskNotes, remedy
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.reader import ShardReader
from unetdist.errors import DataError, one_line, printable
from unetdist.sharding.account import UnlistedColor
from unetdist.sharding.convert import UNKNOWN_COLORS
from unetdist.sharding.folder import FolderRun
from unetdist.sharding.sources import Problem
from unetdist.storage.folders import Folder

# Problems of one kind that are printed; a file lists all of them.
MAX_LISTED = 20
PROBLEMS_NAME = "problems.txt"
# Most pixels along each side of an image on the sheet of samples.
PANEL_PX = 256
CHANNEL_NAMES = {1: "grey", 3: "RGB", 4: "RGBA"}


def describe_problems(
    problems: Sequence[Problem],
    folder: Folder,
    found: Sequence[UnlistedColor] = (),
    palette: Palette | None = None,
    notes: MaskNotes | None = None,
) -> str:
    """All problems under headings, with the unlisted colours of all masks; "" if there are none.

    Long lists are cut, and complete in `folder/problems.txt`.
    """
    ordered = sorted(problems, key=lambda problem: problem.kind)
    whole, short = list[str](), list[str]()
    is_cut = False
    for kind, items in groupby(ordered, key=lambda problem: problem.kind):
        lines = [f"  {one_line(problem.where)}: {_indented(problem.detail)}" for problem in items]
        heading = f"{kind} ({len(lines)})"
        whole += [heading, *lines]
        if kind == UNKNOWN_COLORS:
            continue  # the census below says more in fewer lines
        short += [heading, *lines[:MAX_LISTED]]
        if len(lines) > MAX_LISTED:
            short.append(f"  ... and {len(lines) - MAX_LISTED} more")
            is_cut = True
    if found and palette and notes:
        census = Census()
        for file, colors in groupby(found, key=lambda color: color.file):
            census.add(file, [color.unknown for color in colors])
        short.append(census.report(remedy=remedy(census, palette, notes)))
    if is_cut:
        try:
            text = "\n".join(whole) + "\n"
            folder.write(PROBLEMS_NAME, text.encode("utf-8", "backslashreplace"))
            short.append(f"All of them are listed in {folder}/{PROBLEMS_NAME}")
        except (OSError, DataError) as error:
            short.append(f"The whole list cannot be written to {folder}/{PROBLEMS_NAME} ({error}).")
    return "\n".join(short)


def _indented(detail: str) -> str:
    return printable(detail).replace("\n", "\n    ")


def describe_folder(run: FolderRun) -> str:
    """The shards that a run wrote, or kept."""
    assert run.manifest is not None
    total, num_same = run.manifest.num_samples, run.account.statistics.num_kept
    num_kept = sum(item.is_kept for item in run.finished)
    return describe_manifest(
        run.manifest,
        run.folder,
        kept=f", {num_kept} of them kept from before" if num_kept else "",
        images="original encoding" if num_same == total else f"{total - num_same} re-encoded",
    )


def describe_manifest(manifest: Manifest, folder: Folder, *, kept: str = "", images: str = "") -> str:
    """The shards of one folder: numbers, and the classes as a table."""
    names = Palette.from_records(manifest.palette_records).class_names
    (low_height, low_width), (high_height, high_width) = manifest.min_size, manifest.max_size
    smallest = "" if manifest.min_size == manifest.max_size else f"{low_width}x{low_height} to "
    colors = "mean {:.1f} {:.1f} {:.1f}, std {:.1f} {:.1f} {:.1f} of 255".format(*manifest.mean, *manifest.std)
    width = max(map(len, ("ignored", *names)))
    lines = [
        f"{folder}: {count(manifest.num_samples, 'sample')} in {count(len(manifest.shards), 'shard')}{kept}, "
        f"{sum(shard.num_bytes for shard in manifest.shards) / 1e6:.1f} MB",
        f"  images  {smallest}{high_width}x{high_height}, {CHANNEL_NAMES[manifest.channels]}; {images or colors}",
        f"  index  {'class':{width}}   pixels  images",
    ]
    for index, name in enumerate(names):
        percent = 100 * manifest.class_pixels[index] / manifest.num_pixels
        remark = "" if manifest.class_pixels[index] else "  does not occur"
        lines.append(f"  {index:5}  {name:{width}}  {percent:5.2f} %  {manifest.class_images[index]:6}{remark}")
    percent = 100 * manifest.ignored_pixels / manifest.num_pixels
    lines.append(f"         {'ignored':{width}}  {percent:5.2f} %")
    return "\n".join(lines)


def next_command(locations: Sequence[str]) -> str:
    """The command to type after these were written: training and validation shards, or one of the two."""
    shown = [mask_credentials(location.rstrip("/")) for location in locations]
    if len(shown) == 1:
        is_val = shown[0].rpartition("/")[2] == "val"
        shown = ["TRAINING_SHARDS", *shown] if is_val else [*shown, "VALIDATION_SHARDS"]
    return f"next: {typed('train')} --data.train {shown[0]} --data.val {shown[1]}"


def count(number: int, noun: str) -> str:
    """Such as "1 sample" or "2,000 samples"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def draw_sheet(folder: Folder, *, keys: Sequence[str] | None, num: int, seed: int) -> np.ndarray:
    """The samples with these keys, or `num` samples, as stored: (H, W, 3) uint8."""
    manifest = Manifest.load(folder)
    # A server without range requests gives only whole shards, which need a place.
    with tempfile.TemporaryDirectory(prefix="unetdist-show-") as temporary:
        cache = ShardCache(Path(temporary), 4 * max(shard.num_bytes for shard in manifest.shards))
        reader = ShardReader(folder, manifest, cache=cache)
        return draw_samples(reader, find_samples(reader, keys) if keys else choose_samples(reader, num, seed=seed))


def choose_samples(reader: ShardReader, num: int, *, seed: int) -> list[int]:
    """Ids of the `num` samples (or all, if there are fewer) that a training with this seed sees first."""
    order = Order(reader.manifest.shard_sizes, seed=seed)
    ids: list[int] = order.locate(np.arange(min(num, order.num_samples))).sample_id.tolist()
    return ids


def find_samples(reader: ShardReader, keys: Sequence[str]) -> list[int]:
    """Ids of the samples with these keys, in this order; reads header after header until it has all."""
    wanted, found = set(keys), dict[str, int]()
    with progress("looking for keys", reader.manifest.num_samples) as bar:
        for sample_id in range(reader.manifest.num_samples):
            key = reader.key(sample_id)
            bar.advance()
            if key in wanted:
                found.setdefault(key, sample_id)
            if len(found) == len(wanted):
                return [found[key] for key in keys]
    raise DataError(
        f"no sample has the key {', '.join(sorted(wanted - set(found)))}; keys look like {reader.key(0)}.",
        source=reader.folder,
    )


def draw_samples(reader: ShardReader, sample_ids: Sequence[int]) -> np.ndarray:
    """The sheet of these samples, without augmentation."""
    from unetdist.data.samples import Samples  # loads torch, which takes seconds

    manifest = reader.manifest
    palette = Palette.from_records(manifest.palette_records)
    samples = Samples(reader, channels=manifest.channels, num_classes=manifest.num_classes)
    rows = []
    for sample_id in sample_ids:
        image, mask = samples.load(sample_id)
        samples.finish(sample_id, image, mask)
        rows.append((reader.key(sample_id), image, mask))
    return gallery(rows, palette.colors, palette.class_names, largest_px=PANEL_PX)
