"""`manifest.json`, which describes a folder of shards. It is written last: a folder without it is unfinished."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np

from unetdist.cli import json_records
from unetdist.cli.commands import typed
from unetdist.cli.credentials import mask
from unetdist.cli.json_records import Count, Hex
from unetdist.data.labels import Palette
from unetdist.data.labels.masks import MaskFormat, UnknownColors
from unetdist.errors import DataError
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import is_network, is_url, refusal

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2

# A height or a width.
Pixels = Annotated[int, range(1, 2**31)]

# Smallest size of a sample in a tar: the headers of its image and its mask.
_LEAST_SAMPLE = 1024


# slots: a data set may have 100,000 shards or more.
@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of the data set."""

    name: Annotated[str, re.compile(r"[^\0]*")]
    """File name in the folder, or the URL or absolute path of a tar elsewhere."""
    num_samples: Count
    num_bytes: Count
    """Size of the tar."""
    sha256: Hex
    """Hash of the tar, in hexadecimal."""
    index_sha256: Hex = ""
    """Hash of the index: the same tar may be indexed with other masks. Empty: unknown, and not compared."""

    @property
    def index_name(self) -> str:
        """Name of its index, always in the folder of the manifest."""
        if "/" in self.name:
            return f"{PurePosixPath(urlsplit(self.name).path).name}-{self.sha256[:12]}.idx"
        return f"{self.name}.idx"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards of a data set in order, its classes, and the counts taken while the shards were written.

    A sample's id is its global number: shards in this order, rows in the order of each shard.
    """

    shards: tuple[Shard, ...]
    palette_records: tuple[dict[str, Any], ...]
    """Every label of the label file, ignored ones too: index (None: ignored), id, name, color."""
    class_pixels: tuple[Count, ...]
    """(C,) pixels of each class."""
    class_images: tuple[Count, ...]
    """(C,) images in which the class occurs."""
    presence_pixels: tuple[Count, ...]
    """(C,) valid pixels of the images in which the class occurs, for median frequency weights."""
    ignored_pixels: Count
    num_samples: Count
    num_pixels: Count
    channels: Annotated[int, (1, 3, 4)]
    """Channels of most images: 1 grey, 3 RGB, 4 RGBA."""
    mean: tuple[float, float, float]
    """Mean of red, green, blue over all pixels, 0..255."""
    std: tuple[float, float, float]
    """Standard deviation of red, green, blue over all pixels, 0..255."""
    min_size: tuple[Pixels, Pixels]
    """(height, width): the smallest of each, not necessarily of one image."""
    max_size: tuple[Pixels, Pixels]
    """(height, width): the largest of each."""
    sizes: tuple[tuple[Pixels, Pixels, Count], ...]
    """(height, width, images) of the most frequent sizes, at most 16."""
    resize: tuple[Pixels, Pixels] | None = None
    """(width, height) that every image was resized to; None: unchanged."""
    image_range: tuple[float, float] | None = None
    """Values of source images of more than 8 bits that became 0 and 255. None: there were no such images, or the
    manifest is older than this field."""
    mask_format: MaskFormat | None = None
    """How the masks of foreign tars are read through the labels; None: they hold class indices."""
    unknown_colors: UnknownColors | None = None
    """Treatment of their unlisted colours; None if `mask_format` is None."""
    version: int = MANIFEST_VERSION

    @property
    def num_classes(self) -> int:
        """Number of classes that are scored: every label that is not ignored."""
        return len(self.class_pixels)

    @cached_property
    def shard_sizes(self) -> np.ndarray:
        """Samples of each shard, int64, read-only."""
        sizes = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        sizes.flags.writeable = False
        return sizes

    @property
    def fingerprint(self) -> str:
        """Hash of the samples, their order and their classes; the same wherever the shards are."""
        shards = [[shard.num_samples, shard.sha256, shard.index_sha256] for shard in self.shards]
        masks = [self.palette_records, self.mask_format, self.unknown_colors]
        return hashlib.sha256(json.dumps([shards, *masks]).encode()).hexdigest()

    def save(self, folder: str | Path | Folder) -> None:
        """Write `folder/manifest.json`: it appears whole or not at all."""
        values = json_records.sealed(dataclasses.asdict(self))
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # File names that are not UTF-8 hold surrogates, which JSON can only escape.
        open_folder(folder).write(MANIFEST_NAME, text.encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "Manifest":
        """Read `folder/manifest.json` in one request; `DataError` if it is absent, damaged or of another version."""
        folder = open_folder(folder)
        path = mask(folder.where(MANIFEST_NAME))
        try:
            record = json_records.parse(folder.read(MANIFEST_NAME))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"no {MANIFEST_NAME} here, so this is no (finished) data set; {_remedy_of_absence(folder)}",
                source=folder,
            ) from None
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error}); {_REMEDY}", source=path) from None
        except ValueError as error:
            raise DataError(f"damaged, not JSON ({error}); {_REMEDY}", source=path) from None
        if not isinstance(record, dict) or "version" not in record:
            raise DataError(f"not a manifest of unetdist; {_REMEDY}", source=path)
        if record["version"] != MANIFEST_VERSION:
            raise DataError(
                f"version {str(record['version'])[:20]}, this program reads version {MANIFEST_VERSION}; "
                "write the shards again with this program, or use the program that wrote them.",
                source=path,
            )
        try:
            # Fields first: the name of a bad field says more than a hash that does not match.
            values = {name: value for name, value in record.items() if name != json_records.SEAL}
            manifest = json_records.build(cls, values)
            manifest._check()
            refused = next(filter(None, (_refusal(shard.name, folder) for shard in manifest.shards)), None)
            if refused is None:
                json_records.unsealed(record)
        except ValueError as error:
            raise DataError(f"damaged ({error}); {_REMEDY}", source=path) from None
        if refused is not None:
            raise DataError(refused, source=path)
        return manifest

    def _check(self) -> None:
        """Raise `ValueError` where valid fields contradict each other."""
        if self.num_samples != sum(shard.num_samples for shard in self.shards):
            raise ValueError("num_samples is not the sum of the shards")
        for shard in self.shards:
            if shard.num_samples * _LEAST_SAMPLE > shard.num_bytes:
                raise ValueError(
                    f"{shard.num_samples} samples do not fit into the {shard.num_bytes} bytes of {shard.name}"
                )
        num_classes = Palette.from_records(self.palette_records).num_classes
        for name in ("class_pixels", "class_images", "presence_pixels"):
            if (length := len(getattr(self, name))) != num_classes:
                raise ValueError(f"{name} has {length} numbers for {num_classes} classes")
        if min(self.std) < 0:
            raise ValueError(f"std ({list(self.std)}) is negative")
        if self.image_range is not None and not self.image_range[0] < self.image_range[1]:
            raise ValueError(f"image_range ({list(self.image_range)}) does not rise")
        if (self.mask_format is None) != (self.unknown_colors is None):
            raise ValueError("only one of mask_format and unknown_colors is null")


def _refusal(name: str, folder: Folder) -> str | None:
    """Why a shard of this name is not opened: the author of a manifest must not make us read other files."""
    shard = f"its shard {mask(name)}"
    if problem := refusal(name):
        return f"{shard}: {problem}"
    is_file_name = "/" not in name and name not in ("", ".", "..")
    is_elsewhere = is_url(name) or name.startswith("/")
    if not is_file_name and not is_elsewhere:
        return f"{shard} leads out of its folder; index the tars again."
    if is_elsewhere and not is_network(name) and is_network(folder.where(MANIFEST_NAME)):
        return f"{shard} would be a file of this machine; upload the tars, and index them there."
    return None


def _remedy_of_absence(folder: Folder) -> str:
    if folder.is_local:
        place = folder.path("")
        below = sorted(place.glob(f"*/{MANIFEST_NAME}"))
        if below:
            return f"give one of the data sets in it: {', '.join(str(file.parent) for file in below)}."
        if not place.is_dir():
            is_what = "it is a file" if place.exists() else "there is no such folder"
            return f"{is_what}; give the folder that `{typed('shard')}` wrote."
        if any(place.glob("*.[jJpPtT][pPnNiI][gGeEfF]*")):
            return f"it holds pictures; `{typed('shard')} --images DIR --masks DIR` writes shards of them."
    return f"write one with `{typed('shard')}`, or run its command again if it was interrupted."


_REMEDY = "run the command that wrote the shards again: it keeps what is complete."
