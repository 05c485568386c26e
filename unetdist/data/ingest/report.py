"""What a person reads at the end of an ingest: all that is wrong in one look, or what was written."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from unetdist.data.ingest.convert import UNKNOWN_COLORS, Found
from unetdist.data.ingest.folder import Outcome
from unetdist.data.ingest.sources import Problem
from unetdist.data.labels import Palette
from unetdist.data.labels.census import Census
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.storage import write_text

MAX_LISTED = 20
"""Problems of one kind that are printed; all of them are in a file."""
PROBLEMS_NAME = "problems.txt"


def census_of(found: Sequence[Found]) -> Census:
    """Every mask's unlisted colours, together."""
    census = Census()
    for file, items in groupby(found, key=lambda item: item.file):
        census.add(file, [item.unknown for item in items])
    return census


def describe_problems(problems: Sequence[Problem], found: Sequence[Found], folder: Path) -> str:
    """All problems under headings, and the census; long lists are cut, and whole in `folder/problems.txt`."""
    ordered = sorted(problems, key=lambda problem: problem.kind)
    whole, short = list[str](), list[str]()
    for kind, items in groupby(ordered, key=lambda problem: problem.kind):
        lines = [f"  {problem.where}: {problem.detail}" for problem in items]
        heading = f"{kind} ({len(lines)})"
        whole += [heading, *lines]
        if kind == UNKNOWN_COLORS:
            continue  # the census tells more in fewer lines
        more = [f"  ... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        short += [heading, *lines[:MAX_LISTED], *more]
    if found:
        short.append(census_of(found).report())
    if any(line.startswith("  ... and ") for line in short):
        try:
            write_text(folder / PROBLEMS_NAME, "\n".join(whole) + "\n")
            short.append(f"All of them are listed in {folder / PROBLEMS_NAME}")
        except OSError as error:
            short.append(f"The whole list cannot be written to {folder / PROBLEMS_NAME} ({error}).")
    return "\n".join(short)


def describe(outcome: Outcome, palette: Palette) -> str:
    """What was written to one folder: counts, and the classes as a table."""
    manifest = outcome.manifest
    assert manifest is not None
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    kept = f", {outcome.num_kept} of them kept from before" if outcome.num_kept else ""
    encoding = _encoding(outcome.statistics.num_kept, manifest.num_samples)
    lines = [
        f"{outcome.folder}: {_count(manifest.num_samples, 'sample')} in "
        f"{_count(len(manifest.shards), 'shard')}{kept}, {megabytes:.1f} MB",
        f"  images  {_sizes(manifest)}, {_channels(manifest)}; {encoding}",
    ]
    width = max(map(len, ("ignored", *palette.class_names)))
    lines.append(f"  index  {'class':{width}}   pixels  images")
    for index, name in enumerate(palette.class_names):
        share = 100 * manifest.class_pixels[index] / manifest.num_pixels
        remark = "" if manifest.class_pixels[index] else "  does not occur"
        lines.append(f"  {index:5}  {name:{width}}  {share:5.2f} %  {manifest.class_images[index]:6}{remark}")
    share = 100 * manifest.ignored_pixels / manifest.num_pixels
    lines.append(f"         {'ignored':{width}}  {share:5.2f} %")
    return "\n".join(lines)


def next_command(folders: Sequence[Path]) -> str:
    """What to type next, once these are written: training and validation shards, or one of the two."""
    folder = folders[0]
    train, val = folders if len(folders) == 2 else (folder.with_name("train"), folder.with_name("val"))
    is_complete = {train, val} >= set(folders) and all(
        (part / MANIFEST_NAME).is_file() for part in (train, val)
    )
    if not is_complete and folder.name == "val":
        train, val, first = Path("TRAINING_SHARDS"), folder, "next, once the training shards are written too:"
    elif not is_complete:
        train, val, first = folder, Path("VALIDATION_SHARDS"), "next, once validation shards are written too:"
    else:
        first = "next:"
    return f"{first} accelerate launch launch/train.py --data.train {train} --data.val {val}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _sizes(manifest: Manifest) -> str:
    (low_height, low_width), (high_height, high_width) = manifest.min_size, manifest.max_size
    if manifest.min_size == manifest.max_size:
        return f"{high_width}x{high_height}"
    return f"{low_width}x{low_height} to {high_width}x{high_height}"


def _channels(manifest: Manifest) -> str:
    return {1: "grey", 3: "RGB", 4: "RGBA"}[manifest.channels]


def _encoding(kept: int, total: int) -> str:
    if kept == total:
        return "bytes as they came"
    return "re-encoded" if kept == 0 else f"{total - kept} re-encoded"
