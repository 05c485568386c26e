"""`manifest.json`: what a folder of shards holds; written last: a folder without it is no data set."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from unetdist.credentials import mask
from unetdist.data.labels.masks import MaskFormat, UnknownColors
from unetdist.errors import DataError
from unetdist.folders import Folder, open_folder
from unetdist.remote import is_network, is_url, refusal

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of the data set."""

    name: str
    """File name in the folder; or a URL or an absolute path, where the tar lies elsewhere."""
    num_samples: int
    num_bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, in hexadecimal."""
    index_sha256: str = ""
    """Of the index: the same tar may be indexed with other masks. Empty: unknown, it is not compared."""

    @property
    def index_name(self) -> str:
        """Of its index, always in the folder of the manifest."""
        if "/" in self.name:
            return f"{PurePosixPath(urlsplit(self.name).path).name}-{self.sha256[:12]}.idx"
        return f"{self.name}.idx"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards of a data set in order, its classes, and what was counted while the shards were written.

    A sample's id is its global number: shards in this order, rows in the order of each shard.
    """

    shards: tuple[Shard, ...]
    palette_records: tuple[dict[str, Any], ...]
    """Every label of the label file, ignored ones too: index (None: ignored), id, name, color."""
    class_pixels: tuple[int, ...]
    """(C,) pixels of each class."""
    class_images: tuple[int, ...]
    """(C,) images in which the class occurs."""
    presence_pixels: tuple[int, ...]
    """(C,) valid pixels of the images in which the class occurs, for median frequency weights."""
    ignored_pixels: int
    num_samples: int
    num_pixels: int
    channels: int
    """What most images are: 1 grey, 3 RGB, 4 RGBA."""
    mean: tuple[float, float, float]
    """Of red, green, blue over all pixels, 0..255."""
    std: tuple[float, float, float]
    """Of red, green, blue over all pixels, 0..255."""
    min_size: tuple[int, int]
    """(height, width): the smallest of each, not necessarily of one image."""
    max_size: tuple[int, int]
    """(height, width): the largest of each."""
    sizes: tuple[tuple[int, int, int], ...]
    """(height, width, images) of the commonest sizes, at most 16."""
    resize: tuple[int, int] | None = None
    """(width, height) that every image was resized to, None: as they came."""
    image_range: tuple[float, float] | None = None
    """Values of the source images that became 0 and 255: 0 and 255 where all had 8 bits. None: unknown, written before
    manifests said so."""
    mask_format: MaskFormat | None = None
    """How the masks of foreign tars are read through the labels, None: they are class indices already."""
    unknown_colors: UnknownColors | None = None
    """What their unlisted colours become; None where `mask_format` is."""
    version: int = MANIFEST_VERSION

    @property
    def num_classes(self) -> int:
        """Classes that are scored: every label that is not ignored."""
        return len(self.class_pixels)

    @cached_property
    def shard_sizes(self) -> np.ndarray:
        """Samples of each shard, int64; not to be written to."""
        sizes = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        sizes.flags.writeable = False
        return sizes

    @property
    def fingerprint(self) -> str:
        """Of the samples, their order and their classes; the same wherever the shards lie."""
        shards = [[shard.num_samples, shard.sha256, shard.index_sha256] for shard in self.shards]
        masks = [self.palette_records, self.mask_format, self.unknown_colors]
        return hashlib.sha256(json.dumps([shards, *masks]).encode()).hexdigest()

    def save(self, folder: str | Path | Folder) -> None:
        """Write `folder/manifest.json`: it appears whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # File names that are not UTF-8 hold half characters, which JSON can only escape.
        open_folder(folder).write(MANIFEST_NAME, text.encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "Manifest":
        """Read `folder/manifest.json`, in one request; `DataError` where absent, damaged or of another version."""
        folder = open_folder(folder)
        path = mask(folder.where(MANIFEST_NAME))
        try:
            record = json.loads(folder.read(MANIFEST_NAME))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"no {MANIFEST_NAME} here, so this is no (finished) data set; {_remedy_of_absence(folder)}",
                source=folder,
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"damaged, not JSON ({error}); {_REMEDY}", source=path) from None
        if not isinstance(record, dict) or "version" not in record:
            raise DataError(f"not a manifest of unetdist; {_REMEDY}", source=path)
        if record["version"] != MANIFEST_VERSION:
            raise DataError(
                f"version {record['version']}, this program reads version {MANIFEST_VERSION}; "
                "write the shards again with this program, or use the program that wrote them.",
                source=path,
            )
        try:
            manifest = cls._from_record(record)
            refused = next(filter(None, (_refusal(shard.name, folder) for shard in manifest.shards)), None)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"damaged ({error!r}); {_REMEDY}", source=path) from None
        if refused is not None:
            raise DataError(refused, source=path)
        return manifest

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> "Manifest":
        values = dict(record)
        values["shards"] = tuple(Shard(**shard) for shard in values["shards"])
        values["sizes"] = tuple(tuple(size) for size in values["sizes"])
        tuples = "palette_records class_pixels class_images presence_pixels mean std min_size max_size"
        for name in tuples.split():
            values[name] = tuple(values[name])
        values["resize"] = None if values["resize"] is None else tuple(values["resize"])
        if values.get("image_range") is not None:
            black, white = map(float, values["image_range"])
            values["image_range"] = (black, white)
        manifest = cls(**values)
        if manifest.num_samples != sum(shard.num_samples for shard in manifest.shards):
            raise ValueError("num_samples is not the sum of the shards")
        return manifest


def _refusal(name: str, folder: Folder) -> str | None:
    """Why a shard of this name will not be opened: the author of a manifest must not choose other files to open."""
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
        here = folder.path("")
        below = sorted(str(inner.parent) for inner in here.glob(f"*/{MANIFEST_NAME}"))
        if below:
            return f"give one of the data sets in it: {', '.join(below)}."
    return "write one with launch/shard_dataset.py, or run its command again if it was interrupted."


_REMEDY = "run the command that wrote the shards again: it keeps what is complete."
