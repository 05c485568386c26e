"""Small data sets, models and runs for tests: random pictures whose mask can be read off their brightness."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from unetdist.data.manifest import Manifest
from unetdist.data.shards import encode_mask, open_shard

CLASS_NAMES = ("sky", "road", "tree")
PALETTE_RECORDS = (
    *({"index": i, "id": i, "name": name, "color": [80 * i, 0, 0]} for i, name in enumerate(CLASS_NAMES)),
    {"index": None, "id": 3, "name": "void", "color": [0, 0, 255]},
)


def draw(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """RGB image and index mask; the ignored share differs much between pictures, and class 2 is rare."""
    rng = np.random.default_rng(index)
    height, width = size
    mask = np.zeros(size, np.uint8)
    mask[:, width * (1 + index % 4) // 6 :] = 1
    if index % 3 == 0:
        mask[: height // 3, : width // 4] = 2
    image = 60 + 70 * mask[..., None].repeat(3, axis=2) + rng.integers(0, 40, (*size, 3))
    mask[rng.random(size) < (index % 5) / 5] = 255
    return image.astype(np.uint8), mask


def write_shards(
    folder: Path,
    num_samples: int,
    *,
    size: tuple[int, int] = (24, 32),
    per_shard: int = 5,
    sizes: tuple[tuple[int, int], ...] | None = None,
) -> Manifest:
    """Write PNG shards and their manifest; picture i has `sizes[i % len(sizes)]`, else `size`, (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    of = [(sizes or (size,))[i % len(sizes or (size,))] for i in range(num_samples)]
    pictures = [draw(i, of[i]) for i in range(num_samples)]
    shards = []
    for first in range(0, num_samples, per_shard):
        path = folder / f"{first // per_shard:06d}.tar"
        with open_shard(path) as writer:
            for i in range(first, min(first + per_shard, num_samples)):
                image, mask = pictures[i]
                png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
                writer.add(f"pictures/{i:03d}", png, "png", encode_mask(mask), {"key": f"pictures/{i:03d}"})
        shards.append(writer.shard)
    counts = np.array([np.bincount(mask.ravel(), minlength=256) for _, mask in pictures])
    valid = counts[:, :3].sum(1)
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in pictures])
    manifest = Manifest(
        shards=tuple(shards),
        palette_records=PALETTE_RECORDS,
        class_pixels=tuple(counts[:, :3].sum(0).tolist()),
        class_images=tuple((counts[:, :3] > 0).sum(0).tolist()),
        presence_pixels=tuple(int(valid[counts[:, c] > 0].sum()) for c in range(3)),
        ignored_pixels=int(counts[:, 255].sum()),
        num_samples=num_samples,
        num_pixels=int(counts.sum()),
        channels=3,
        mean=tuple(pixels.mean(0).tolist()),
        std=tuple(pixels.std(0).tolist()),
        min_size=tuple(np.min(of, 0).tolist()),
        max_size=tuple(np.max(of, 0).tolist()),
        sizes=tuple((*s, of.count(s)) for s in sorted(set(of))),
    )
    manifest.save(folder)
    return manifest


def settings_of(train: Path, val: Path | None, runs: Path, **sections: Any) -> dict[str, Any]:
    """Settings of a tiny run, as `Config` reads them; `sections` are merged in."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "runs_dir": str(runs),
        "data": {"train": str(train), "val": None if val is None else str(val), "num_workers": 0},
        "augment": {"crop_size": [16, 16]},
        "model": {"widths": [4, 8]},
        "trainer": {"global_batch_size": 4, "max_steps": 4, "log_every": 2},
        "tracking": {"tracker": "none"},
    }
    for section, values in sections.items():
        merges = isinstance(settings.get(section), dict)
        settings[section] = {**settings[section], **values} if merges else values
    return settings
