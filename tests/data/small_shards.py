"""Writes small folders of shards for tests, straight from arrays."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.synthetic import PALETTE_RECORDS
from unetdist.data.manifest import Manifest
from unetdist.data.shards import encode_mask, open_shard

NUM_CLASSES = 3


def encode_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, names: Sequence[str]) -> Path:
    """Write a tar as other programs do: members of three bytes, in the order of `names`, without an index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


def numbered_sample(sample_id: int, size: tuple[int, int] = (12, 16)) -> tuple[np.ndarray, np.ndarray]:
    """An image whose first pixel tells the sample, and a mask with all classes and ignored pixels."""
    rng = np.random.default_rng(sample_id)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image[0, 0] = sample_id % 256
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), size)
    return image, mask


def write_small_shards(
    folder: Path,
    shard_sizes: list[int],
    *,
    sizes: list[tuple[int, int]] | None = None,
    encoded: dict[int, tuple[bytes, bytes]] | None = None,
) -> Manifest:
    """Shards of `numbered_sample`; `sizes` are gone through in turn, `encoded` replaces samples by bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = sizes or [(12, 16)]
    shards = []
    sample_id = 0
    for number, samples in enumerate(shard_sizes):
        with open_shard(folder / f"{number:06d}.tar") as writer:
            for _ in range(samples):
                image, mask = numbered_sample(sample_id, sizes[sample_id % len(sizes)])
                default = encode_png(image), encode_mask(mask)
                image_bytes, mask_bytes = (encoded or {}).get(sample_id, default)
                writer.add(f"scene.{number}/frame {sample_id}", image_bytes, "png", mask_bytes, {"key": "x"})
                sample_id += 1
        shards.append(writer.shard)
    heights, widths = zip(*sizes, strict=True)
    manifest = Manifest(
        shards=tuple(shards),
        palette_records=PALETTE_RECORDS,
        class_pixels=(1000, 500, 10),
        class_images=(sample_id,) * NUM_CLASSES,
        presence_pixels=(1510,) * NUM_CLASSES,
        ignored_pixels=0,
        num_samples=sample_id,
        num_pixels=1510,
        channels=3,
        mean=(100.0, 110.0, 120.0),
        std=(50.0, 50.0, 50.0),
        min_size=(min(heights), min(widths)),
        max_size=(max(heights), max(widths)),
        sizes=tuple((height, width, 1) for height, width in sizes),
    )
    manifest.save(folder)
    return manifest
