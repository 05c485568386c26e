"""One shard's samples from source to tar: the work of one worker process."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetdist.data.labels import Palette
from unetdist.data.manifest import Shard
from unetdist.data.shards import encode_mask, index_path, load_index, open_shard, save_index
from unetdist.data.tar_index import index_tar
from unetdist.sharding.convert import POLICY, Converter, ConvertOptions, storing
from unetdist.sharding.records import Finished, has_index, has_size
from unetdist.sharding.sources import Reader, Sample
from unetdist.storage.folders import Folder


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made."""

    folder: Folder
    number: int
    samples: tuple[Sample, ...]
    reader: Reader
    palette: Palette
    options: ConvertOptions
    is_rehearsal: bool = False
    """Look for problems only, write nothing."""

    @property
    def name(self) -> str:
        """Of the tar."""
        return f"{self.number:06d}.tar"

    @property
    def num_samples(self) -> int:
        """What progress counts."""
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """Of all that decides the bytes of a shard whose samples are all good (if not, `policy` matters too)."""
        samples = [
            [sample.key, sample.image, sample.mask, sample.row, sample.stamp] for sample in self.samples
        ]
        text = json.dumps([samples, self.palette.to_records(), self.options.deciding()])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def policy(self) -> Sequence[Any]:
        """What matters only if something is bad."""
        return [getattr(self.options, name) for name in POLICY]

    def has_sizes(self, shard: Shard) -> bool:
        """Whether tar and index are there, by their sizes."""
        return has_size(self.folder, shard.name, shard.num_bytes) and has_index(self.folder, shard)

    def is_whole(self, shard: Shard) -> bool:
        """Whether tar and index are there: a local tar by its hash, another one by its size."""
        if not self.folder.is_local:
            return self.has_sizes(shard)
        try:
            if _sha256(self.folder.path(self.name)) != shard.sha256:
                return False
        except OSError:
            return False
        _mend_index(self.folder.path(self.name))
        return True

    def make(self) -> Finished:
        """Write the shard, unless one of its samples is bad and none are to be skipped."""
        converter = Converter(self.reader, self.palette, self.options, storing(self.options))
        shard = None
        if self.is_rehearsal:
            for sample in self.samples:
                converter.convert(sample)
        else:
            shard = self._write(converter)
        problems, found = tuple(converter.problems), tuple(converter.found)
        return Finished(
            self.number,
            len(self.samples),
            shard,
            converter.statistics,
            problems,
            found,
            notes=converter.notes,
        )

    def _write(self, converter: Converter) -> Shard | None:
        with self._place() as path:
            try:
                with open_shard(path) as writer:
                    for sample in self.samples:
                        good = converter.convert(sample)
                        if good is None or (converter.problems and not self.options.skip_bad):
                            continue
                        record = {
                            "key": sample.key,
                            "height": good.mask.shape[0],
                            "width": good.mask.shape[1],
                        }
                        names = {"image": sample.image, "mask": sample.mask}
                        mask = encode_mask(good.mask)
                        writer.add(
                            sample.key, good.picture.data, good.picture.extension, mask, record | names
                        )
                    if converter.problems and not self.options.skip_bad:
                        raise _BadShardError
            except _BadShardError:
                return None
            if not self.folder.is_local:
                self.folder.upload(index_path(self.name).name, index_path(path))
                self.folder.upload(self.name, path)
        return writer.shard

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """Where the tar is written: in place, or where it is uploaded from."""
        if self.folder.is_local:
            yield self.folder.path(self.name)
        else:
            with tempfile.TemporaryDirectory(prefix="unetdist-") as folder:
                yield Path(folder) / self.name


class _BadShardError(Exception):
    """Leaves `open_shard` so that it discards the tar."""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mend_index(path: Path) -> None:
    index = index_tar(path)
    try:
        is_right = np.array_equal(load_index(path), index)
    except (OSError, ValueError):
        is_right = False
    if not is_right:
        save_index(path, index)
