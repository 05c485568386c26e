"""Where samples come from: folders, a list file or the built-in shapes (`dataset_source.py` reads Hugging Face data).

The main process lists a source once. Its `reader` is small, goes to every worker, and fetches bytes.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.shapes import PALETTE, draw
from unetdist.errors import ConfigError, DataError, one_line
from unetdist.sharding.stored_image import encode

DUPLICATE_KEY = "two {}s with one key"


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """One image and its mask, not yet read."""

    key: str
    """Unique; relative path without suffix, "/" between folders."""
    image: str
    """Name of the image, for people and for the reader."""
    mask: str
    row: int = 0
    """Row in a dataset; unused for files."""
    num_bytes: int = 0
    """Size of image and mask as stored, or a guess."""
    stamp: str = ""
    """Changes when the contents change, such as sizes and times of the files."""


@dataclass(frozen=True)
class Problem:
    """Something in the user's data that the user has to fix."""

    kind: str
    """Heading under which problems are listed."""
    where: str
    """File, key or line."""
    detail: str = ""


class Reader(Protocol):
    """Fetches the bytes of a sample; picklable."""

    def read(self, sample: RawSample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""


@dataclass(frozen=True)
class SampleSource:
    """Samples sorted by key, the problems of the others, and the reader of their bytes."""

    samples: tuple[RawSample, ...]
    problems: tuple[Problem, ...]
    reader: Reader


@dataclass(frozen=True)
class FileReader:
    """Reads files; relative names are below the two folders."""

    images: Path
    masks: Path

    def read(self, sample: RawSample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""
        return (self.images / sample.image).read_bytes(), (self.masks / sample.mask).read_bytes()

    def sample(self, key: str, image: str, mask: str) -> RawSample:
        """The sample of two files; `OSError` if one is missing."""
        stats = [(self.images / image).stat(), (self.masks / mask).stat()]
        return RawSample(
            key=key,
            image=image,
            mask=mask,
            num_bytes=sum(stat.st_size for stat in stats),
            stamp=" ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats),
        )


@dataclass(frozen=True)
class ShapesReader:
    """Draws the image and mask of `row` when they are read."""

    seed: int

    def read(self, sample: RawSample) -> tuple[bytes, bytes]:
        """Encoded image and encoded colour mask."""
        image, mask = draw(sample.row, seed=self.seed)
        return encode(image, "png"), encode(np.ascontiguousarray(PALETTE.colorize(mask)), "png")


def from_shapes(count: int, *, seed: int) -> SampleSource:
    """`count` images of the built-in shapes, whose classes are `data.shapes.PALETTE`."""
    if count < 1:
        raise ConfigError(f"shapes ({count}) must be 1 or more; use 400.")
    samples = tuple(
        RawSample(
            key=f"{row:05d}",
            image=f"shapes:{seed}:{row}:image",
            mask=f"shapes:{seed}:{row}:mask",
            row=row,
            # A guess: the images are drawn only when they are read.
            num_bytes=20_000,
        )
        for row in range(count)
    )
    return SampleSource(samples, (), ShapesReader(seed))


def from_folders(
    images: str | Path, masks: str | Path, *, image_name: str | None = None, mask_name: str | None = None
) -> SampleSource:
    """Pairs of files below two folders (or one) that have the same folder and stem.

    Args:
        images: Folder of the images, searched with its subfolders.
        masks: Folder of the masks; may be `images` itself if `mask_name` tells them apart.
        image_name: Template of an image's name such as "{stem}_leftImg8bit.png"; None: any picture.
        mask_name: Template of a mask's name such as "{stem}_L.png"; None: any picture.

    Raises:
        ConfigError: A template without {stem}, or one folder and no template.
        DataError: A folder that is missing or holds no pictures, or no pair at all.
    """
    images, masks = Path(images), Path(masks)
    if images.resolve() == masks.resolve() and mask_name is None:
        raise ConfigError(
            f"images and masks are both {images}; tell them apart with --mask-name, for example "
            '--mask-name "{stem}_mask.png".'
        )
    mask_files = list(_find(masks, "mask", mask_name))
    # In a common folder, a file that is a mask must not count as an image too.
    taken = {(masks / name).resolve() for _, name in mask_files}
    image_files = list(_find(images, "image", image_name, without=taken))
    problems: list[Problem] = []
    image_of = _by_key(image_files, "image", problems)
    mask_of = _by_key(mask_files, "mask", problems)
    common = sorted(image_of.keys() & mask_of.keys())
    if not common:
        image, mask = image_files[0][1], mask_files[0][1]
        raise DataError(
            f"none of {len(image_files)} images has a mask: the first image is {image}, the first mask (in {masks}) is "
            f"{mask}; say how their names correspond with --image-name and --mask-name, for example --image-name "
            '"{stem}_image.jpg" --mask-name "{stem}_mask.png", or list the pairs in a file: --list FILE.',
            source=images,
        )
    problems += _unpaired("image without mask", images, image_of, masks, mask_of, mask_name)
    problems += _unpaired("mask without image", masks, mask_of, images, image_of, image_name)
    # Keys keep the spelling on disk, as in shards that older versions wrote.
    key_of = {name: key for key, name in image_files}
    pairs = {key_of[image_of[key]]: (image_of[key], mask_of[key]) for key in common}
    return _paired(FileReader(images, masks), pairs, problems)


def from_list(path: str | Path, *, images: str | Path | None = None, masks: str | Path | None = None) -> SampleSource:
    """Pairs from a text file with one `image mask` per line, separated by a tab or spaces.

    Names with spaces need quotes. They are relative to `images` and `masks`, by default the list's own folder. A key is
    the image's name as written there, without suffix. Blank lines and lines that start with # are skipped.
    """
    path = Path(path)
    reader = FileReader(Path(images or path.parent), Path(masks or path.parent))
    problems: list[Problem] = []
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        image, mask = _fields(line.strip(), f"{path}, line {number}")
        key = re.sub(r"^(\.{0,2}/)+", "", Path(image).with_suffix("").as_posix())
        if key in pairs:
            detail = one_line(f"{pairs[key][0]} is also {key}")
            problems.append(Problem(DUPLICATE_KEY.format("image"), image, detail))
            continue
        pairs[key] = image, mask
        for kind, file in (("image", reader.images / image), ("mask", reader.masks / mask)):
            if not file.is_file():
                problems.append(Problem(f"{kind} not found", str(file), f"listed in {path}, line {number}"))
                pairs.pop(key, None)
    if not pairs and not problems:
        raise DataError("lists no samples; write one `image mask` per line.", source=path)
    return _paired(reader, pairs, problems)


def _paired(reader: FileReader, pairs: dict[str, tuple[str, str]], problems: list[Problem]) -> SampleSource:
    """The samples whose files exist, by key; `problems` and those of the others."""
    samples = list[RawSample]()
    for key in sorted(pairs):
        try:
            samples.append(reader.sample(key, *pairs[key]))
        except OSError as error:  # such as a dangling link
            problems.append(Problem("cannot be read", str(error.filename), str(error.strerror)))
    return SampleSource(tuple(samples), tuple(problems), reader)


def _find(root: Path, kind: str, template: str | None, without: Collection[Path] = ()) -> Iterator[tuple[str, str]]:
    """(key, name) of every picture below `root` that fits the template, sorted by name."""
    if template is not None and "{stem}" not in template:
        raise ConfigError(f'--{kind}-name ({template}) must hold {{stem}}; use for example "{{stem}}_{kind}.png".')
    if not root.is_dir():
        raise DataError(f"no such folder; give the folder of the {kind}s with --{kind}s.", source=root)
    name_pattern = re.escape(template or "{stem}").replace(re.escape("{stem}"), "([^/]+)", 1)
    # DOTALL, because a file name may contain a line break.
    pattern = re.compile(f"((?:.*/)?){name_pattern}", re.DOTALL)
    found = False
    for name in sorted(files_below(root)):
        stem = name
        if template is None:
            stem = PurePosixPath(name).with_suffix("").as_posix()
            if PurePosixPath(name).suffix.lower() not in PICTURE_SUFFIXES:
                continue
        match = pattern.fullmatch(stem)
        if match is None or (without and (root / name).resolve() in without):
            continue
        found = True
        yield match[1] + match[2], name
    if not found:
        looked = template or "*" + " *".join(PICTURE_SUFFIXES)
        raise DataError(f"no {kind}s here; looked for {looked}, in subfolders too.", source=root)


def _by_key(files: Sequence[tuple[str, str]], kind: str, problems: list[Problem]) -> dict[str, str]:
    """Name by key; a name in two Unicode forms is one key."""
    name_of: dict[str, str] = {}
    for key, name in files:
        # macOS stores an umlaut as two characters (NFD) that look like one (NFC).
        key = unicodedata.normalize("NFC", key)
        if key in name_of:
            detail = one_line(f"{name_of[key]} is also {key}")
            problems.append(Problem(DUPLICATE_KEY.format(kind), name, detail))
        name_of.setdefault(key, name)
    return name_of


def _unpaired(
    kind: str, root: Path, name_of: dict[str, str], other: Path, other_of: dict[str, str], template: str | None
) -> Iterator[Problem]:
    """A problem for every file below `root` that has no partner below `other`."""
    for key in sorted(name_of.keys() - other_of.keys()):
        folder, _, stem = key.rpartition("/")
        partner = f"{stem}.*" if template is None else template.replace("{stem}", stem)
        detail = one_line(f"no {folder}/{partner} in {other}" if folder else f"no {partner} in {other}")
        yield Problem(kind, str(root / name_of[key]), detail)


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file (with or without BOM) that the user gave."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError("no such file; give the list of samples.", source=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error}); save it as UTF-8.", source=path) from None


def _fields(line: str, where: str) -> tuple[str, str]:
    """The names of image and mask in a line."""
    # Windows separates folders by a backslash.
    line = line.replace("\\", "/")
    if "\t" in line:
        fields = line.split("\t")
    else:
        try:
            fields = shlex.split(line)
        except ValueError:  # an apostrophe in a name is not an open quote
            fields = line.split()
    if len(fields) != 2:
        raise DataError(
            f"expected `image mask`, found {len(fields)} fields in {line!r}; put names with spaces in quotes, or "
            "separate the two by a tab.",
            source=where,
        )
    return fields[0].strip(), fields[1].strip()


def files_below(root: Path) -> Iterator[str]:
    """Relative names with "/" of all files below `root`, in any order, without hidden ones such as macOS's ._x.png.

    A folder that several links point to is searched once, under its own name if it has one below `root`.
    """
    seen: set[Path] = set()
    # Links come after all plain folders, which gives a folder its own name rather than that of a link.
    links = [root]
    while links:
        start = links.pop(0)
        real = start.resolve()
        # A link back to `root` or to a folder above it would add everything there to the data.
        if start != root and (real in seen or root.resolve().is_relative_to(real)):
            logger.warning("%s links to %s, which is searched once; the link is ignored.", start, real)
            continue
        for folder, folders, names in os.walk(start):
            if (here := Path(folder).resolve()) in seen:
                folders.clear()
                continue
            seen.add(here)
            visible = sorted(name for name in folders if not name.startswith("."))
            links += [path for name in visible if (path := Path(folder, name)).is_symlink()]
            folders[:] = [name for name in visible if not Path(folder, name).is_symlink()]
            below = Path(folder).relative_to(root)
            yield from ((below / name).as_posix() for name in names if not name.startswith("."))
