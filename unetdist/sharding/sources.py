"""Where samples come from: folders or a list file (`dataset_source.py` and `shapes_source.py` are the others).

A source is listed once, in the main process; its `reader` is small, goes to every worker, and fetches bytes.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.errors import ConfigError, DataError, one_line
from unetdist.sharding.listing import composed, files_below, is_readme, spelled


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its mask, not yet read."""

    key: str
    """Unique; relative path without suffix, "/" between folders."""
    image: str
    """Name of the image, for people and for the reader."""
    mask: str
    row: int = 0
    """Place in a dataset; without meaning for files."""
    num_bytes: int = 0
    """Of image and mask as they are stored, or a guess."""
    stamp: str = ""
    """Changes when the contents change, such as sizes and times of the files."""


@dataclass(frozen=True)
class Problem:
    """Something in the user's data that needs the user."""

    kind: str
    """Heading under which problems are listed."""
    where: str
    """File, key or line."""
    detail: str = ""


class Reader(Protocol):
    """Fetches the bytes of a sample; picklable."""

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""


@dataclass(frozen=True)
class Source:
    """Samples sorted by key, what was wrong with the others, and the reader of their bytes."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    reader: Reader


@dataclass(frozen=True)
class FileReader:
    """Reads files; names that are not absolute are below the two folders."""

    images: Path
    masks: Path

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Encoded image and encoded mask."""
        return (self.images / sample.image).read_bytes(), (self.masks / sample.mask).read_bytes()


def from_folders(
    images: str | Path, masks: str | Path, *, image_name: str | None = None, mask_name: str | None = None
) -> Source:
    """Pairs of files below two folders (or one) that have the same folder and stem.

    Args:
        images: Folder of the images, searched with its subfolders.
        masks: Folder of the masks; may be `images` itself if `mask_name` tells them apart.
        image_name: Template of an image's name such as "{stem}_leftImg8bit.png"; None: any picture.
        mask_name: Template of a mask's name such as "{stem}_L.png"; None: any picture.

    Raises:
        ConfigError: A template without {stem}, or one folder and no template.
        DataError: A folder that is not there or holds no pictures, or no pair at all.
    """
    images, masks = Path(images), Path(masks)
    if images.resolve() == masks.resolve() and mask_name is None:
        raise ConfigError(
            f"images and masks are both {images}; tell them apart with --mask-name, for example "
            '--mask-name "{stem}_mask.png".'
        )
    mask_files = list(_find(masks, "mask", mask_name))
    taken = {(masks / name).resolve() for _, name in mask_files}
    image_files = list(_find(images, "image", image_name, without=taken))
    problems: list[Problem] = []
    image_of = _by_key(image_files, "image", problems)
    mask_of = _by_key(mask_files, "mask", problems)
    if not image_of.keys() & mask_of.keys():
        image, mask = image_files[0][1], mask_files[0][1]
        raise DataError(
            f"none of {len(image_files)} images has a mask: the first image is {image}, the first mask (in {masks}) is "
            f"{mask}; say how their names correspond with --image-name and --mask-name, {_templates(image, mask)}, or "
            "name the pairs in a file: --list FILE.",
            source=images,
        )
    for kind, root, name_of, other_root, other_of, template in (
        ("image without mask", images, image_of, masks, mask_of, mask_name),
        ("mask without image", masks, mask_of, images, image_of, image_name),
    ):
        alike = {key.casefold(): name for key, name in other_of.items() if key not in name_of}
        for key in sorted(name_of.keys() - other_of.keys()):
            detail = one_line(f"no {_expected(key, template)} in {other_root}")
            if key.casefold() in alike:
                detail += f"; {alike[key.casefold()]} differs in upper and lower case, rename one of the two"
            problems.append(Problem(kind, str(root / name_of[key]), detail))
    reader = FileReader(images, masks)
    samples = list[Sample]()
    key_of = {name: key for key, name in image_files}
    for key in sorted(image_of.keys() & mask_of.keys()):
        try:
            samples.append(_file_sample(reader, key_of[image_of[key]], image_of[key], mask_of[key]))
        except OSError as error:  # such as a link that leads nowhere
            problems.append(Problem("cannot be read", str(error.filename), str(error.strerror)))
    beside = [sample.image for sample in samples if "/" not in sample.key]
    if len(beside) == 1 and len(samples) > 2:
        logger.warning(
            "%s is not in the folders of the other samples; remove it if it is not a sample.",
            images / beside[0],
        )
    return Source(tuple(samples), tuple(problems), reader)


def from_list(
    path: str | Path, *, images: str | Path | None = None, masks: str | Path | None = None
) -> Source:
    """Pairs from a text file: `image mask` a line, parted by a tab or blanks (quote names that hold blanks).

    Names are relative to `images` and `masks`, by default the list's own folder. A key is the image's name as
    it is written there, without suffix. Blank lines and lines that start with # are left out.
    """
    path = Path(path)
    reader = FileReader(Path(images or path.parent), Path(masks or path.parent))
    problems: list[Problem] = []
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        fields = _fields(line.strip(), reader, where)
        key = re.sub(r"^(\.{0,2}/)+", "", Path(fields[0]).with_suffix("").as_posix())
        if key in pairs:
            problems.append(
                Problem("two images with one key", fields[0], one_line(f"{pairs[key][0]} is also {key}"))
            )
            continue
        pairs[key] = fields
        for kind, root, name in (("image", reader.images, fields[0]), ("mask", reader.masks, fields[1])):
            if not (root / name).is_file():
                problems.append(Problem(f"{kind} not found", str(root / name), f"listed in {where}"))
                pairs.pop(key, None)
    if not pairs and not problems:
        raise DataError("lists no samples; a line reads `image mask`.", source=path)
    samples = (_file_sample(reader, key, *pairs[key]) for key in sorted(pairs))
    return Source(tuple(samples), tuple(problems), reader)


def _find(
    root: Path, kind: str, template: str | None, without: Collection[Path] = ()
) -> Iterator[tuple[str, str]]:
    """(key, name) of every picture below `root` that fits the template, in the order of names."""
    if template is not None and "{stem}" not in template:
        raise ConfigError(
            f'--{kind}-name ({template}) must hold {{stem}}; use for example "{{stem}}_{kind}.png".'
        )
    if not root.is_dir():
        raise DataError(f"no such folder; give the folder of the {kind}s with --{kind}s.", source=root)
    name_pattern = re.escape(template or "{stem}").replace(re.escape("{stem}"), "([^/]+)", 1)
    pattern = re.compile(f"((?:.*/)?){name_pattern}", re.DOTALL)
    found = False
    for name in sorted(files_below(root)):
        stem = name
        if template is None:
            stem = PurePosixPath(name).with_suffix("").as_posix()
            if PurePosixPath(name).suffix.lower() not in PICTURE_SUFFIXES:
                continue
            if is_readme(name):
                logger.warning("%s is taken for a part of the README, not for %s.", root / name, kind)
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
    """Name of each key, whose letters are composed: one name in two Unicode forms is one key."""
    name_of: dict[str, str] = {}
    for key, name in files:
        key = composed(key)
        if key in name_of:
            problems.append(
                Problem(f"two {kind}s with one key", name, one_line(f"{name_of[key]} is also {key}"))
            )
        name_of.setdefault(key, name)
    return name_of


def _templates(image: str, mask: str) -> str:
    """The name options to type, guessed from what two names have in common."""
    image, mask = PurePosixPath(image).name, PurePosixPath(mask).name
    stems = PurePosixPath(image).stem, PurePosixPath(mask).stem
    if common := os.path.commonprefix(stems):  # noqa: RUF071 (of letters)
        ends = image.removeprefix(common), mask.removeprefix(common)
        return f'here perhaps --image-name "{{stem}}{ends[0]}" --mask-name "{{stem}}{ends[1]}"'
    return 'for example --image-name "{stem}_image.jpg" --mask-name "{stem}_mask.png"'


def _expected(key: str, template: str | None) -> str:
    folder, _, stem = key.rpartition("/")
    name = f"{stem}.*" if template is None else template.replace("{stem}", stem)
    return f"{folder}/{name}" if folder else name


def _file_sample(reader: FileReader, key: str, image: str, mask: str) -> Sample:
    stats = [(reader.images / image).stat(), (reader.masks / mask).stat()]
    return Sample(
        key=key,
        image=image,
        mask=mask,
        num_bytes=sum(stat.st_size for stat in stats),
        stamp=" ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats),
    )


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file (with or without BOM) that the user named."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError("no such file; give the list of samples.", source=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error}); save it as UTF-8.", source=path) from None


def _fields(line: str, reader: FileReader, where: str) -> tuple[str, str]:
    """The image and mask of a line, spelled like the files on disk; names that match no file are unchanged."""
    readings = [line.split("\t")] if "\t" in line else [_blanks(line), _blanks(line.replace("\\", "/"))]
    pairs = [(fields[0].strip(), fields[1].strip()) for fields in readings if len(fields) == 2]
    for image, mask in pairs:
        found = spelled(reader.images, image), spelled(reader.masks, mask)
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    if not pairs:
        raise DataError(
            f"expected `image mask`, found {len(readings[0])} fields in {line!r}; put names that hold blanks in "
            "quotes, or part the two by a tab.",
            source=where,
        )
    image, mask = pairs[-1]
    return spelled(reader.images, image) or image, spelled(reader.masks, mask) or mask


def _blanks(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an apostrophe in a name is no quote that is left open
        return line.split()
