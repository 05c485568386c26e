"""What a person reads at the end of an ingest: all that is wrong in one look, or what was written."""

from collections.abc import Sequence
from itertools import groupby

from unetdist.cli.credentials import mask
from unetdist.data.labels import Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import MaskNotes, remedy
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.errors import DataError, one_line, printable
from unetdist.sharding.convert import UNKNOWN_COLORS
from unetdist.sharding.folder import Outcome
from unetdist.sharding.records import Found
from unetdist.sharding.sources import Problem
from unetdist.storage.folders import Folder, open_folder

MAX_LISTED = 20
"""Problems of one kind that are printed; all of them are in a file."""
PROBLEMS_NAME = "problems.txt"


def census_of(found: Sequence[Found]) -> Census:
    """Every mask's unlisted colours, together."""
    census = Census()
    for file, items in groupby(found, key=lambda item: item.file):
        census.add(file, [item.unknown for item in items])
    return census


def describe_unlisted(found: Sequence[Found], palette: Palette, notes: MaskNotes) -> str:
    """The colours of masks that no label lists, and what to do; "" if there are none."""
    census = census_of(found)
    return census.report(remedy=remedy(census, palette, notes)) if census else ""


def describe_problems(problems: Sequence[Problem], unlisted: str, folder: Folder) -> str:
    """All problems under headings, and what is not listed; long lists are cut, and whole in `folder/problems.txt`."""
    ordered = sorted(problems, key=lambda problem: problem.kind)
    whole, short = list[str](), list[str]()
    for kind, items in groupby(ordered, key=lambda problem: problem.kind):
        lines = [f"  {one_line(problem.where)}: {_indented(problem.detail)}" for problem in items]
        heading = f"{kind} ({len(lines)})"
        whole += [heading, *lines]
        if kind == UNKNOWN_COLORS:
            continue  # the census tells more in fewer lines
        more = [f"  ... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
        short += [heading, *lines[:MAX_LISTED], *more]
    if unlisted:
        short.append(unlisted)
    if any(line.startswith("  ... and ") for line in short):
        try:
            text = "\n".join(whole) + "\n"
            folder.write(PROBLEMS_NAME, text.encode("utf-8", "backslashreplace"))
            short.append(f"All of them are listed in {folder}/{PROBLEMS_NAME}")
        except (OSError, DataError) as error:
            short.append(f"The whole list cannot be written to {folder}/{PROBLEMS_NAME} ({error}).")
    return "\n".join(short)


def _indented(detail: str) -> str:
    return printable(detail).replace("\n", "\n    ")


def describe(outcome: Outcome, palette: Palette) -> str:
    """What was written to one folder: counts, and the classes as a table."""
    manifest = outcome.manifest
    assert manifest is not None
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    kept = f", {outcome.num_kept} of them kept from before" if outcome.num_kept else ""
    encoding = _encoding(outcome.statistics.num_kept, manifest.num_samples)
    lines = [
        f"{outcome.folder}: {count(manifest.num_samples, 'sample')} in "
        f"{count(len(manifest.shards), 'shard')}{kept}, {megabytes:.1f} MB",
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


def next_command(locations: Sequence[str]) -> str:
    """What to type next, once these are written: training and validation shards, or one of the two."""
    locations = [location.rstrip("/") for location in locations]
    first = locations[0]
    above, _, name = first.rpartition("/")
    beside = f"{above}/" if above else ""
    train, val = locations if len(locations) == 2 else (f"{beside}train", f"{beside}val")
    is_complete = {train, val} >= set(locations) and all(
        MANIFEST_NAME in open_folder(part).names(MANIFEST_NAME) for part in (train, val)
    )
    when = "next:"
    if not is_complete and name == "val":
        train, val, when = "TRAINING_SHARDS", first, "next, once the training shards are written too:"
    elif not is_complete:
        train, val, when = first, "VALIDATION_SHARDS", "next, once validation shards are written too:"
    return f"{when} accelerate launch launch/train.py --data.train {mask(train)} --data.val {mask(val)}"


def count(number: int, noun: str) -> str:
    """Such as "1 sample" or "2,000 samples"."""
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
        return "as they came"
    return "re-encoded" if kept == 0 else f"{total - kept} re-encoded"
