"""Runs of an ingest over small folders, and what they leave."""

import hashlib
import json
import tarfile
from pathlib import Path

from tests.sharding.picture_folders import palette
from unetdist.data.manifest import Manifest
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.plan import WorkPartition
from unetdist.sharding.sources import SampleSource, from_folders
from unetdist.sharding.split import LayoutOptions
from unetdist.sharding.writer import write_dataset

FIVE = LayoutOptions(samples_per_shard=5)


def write(root: Path, out: Path | str, source: SampleSource | None = None, **options) -> str | None:
    layout = options.pop("layout", FIVE)
    run = {name: options.pop(name) for name in ("workers", "overwrite", "partition") if name in options}
    run.setdefault("partition", WorkPartition())
    source = source or from_folders(root / "images", root / "masks")
    return write_dataset(
        source, {str(out): source.samples}, palette(root), convert=ConvertOptions(**options), layout=layout, **run
    )


def contents(folder: Path) -> dict[str, str]:
    """Name -> hash of all that a user sees in the folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()
    }


def samples_of(folder: Path) -> dict[str, tuple[bytes, bytes, dict]]:
    """Key -> image, mask, record; in the order of the shards."""
    found = {}
    for shard in Manifest.load(folder).shards:
        with tarfile.open(folder / shard.name) as tar:
            files = [tar.extractfile(member).read() for member in tar]
        for image, mask, record in zip(files[0::3], files[1::3], files[2::3], strict=True):
            found[json.loads(record)["key"]] = image, mask, json.loads(record)
    return found
