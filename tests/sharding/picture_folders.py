"""Folders of images and colour masks, as a user has them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from unetdist.data.labels import Palette

LABELS = "0 0 0 ground\n255 0 0 tree\n0 0 255 sky\n90 90 90 void\n"
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [90, 90, 90]], np.uint8)


def image_array(seed: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def mask_array(seed: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """Numbers of lines in LABELS; 3 is void."""
    return np.random.default_rng(seed + 1000).integers(0, 4, size, dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def color_mask(numbers: np.ndarray) -> bytes:
    return encoded(COLORS[numbers])


def write_folders(root: Path, count: int = 20, size: tuple[int, int] = (12, 16)) -> Path:
    """root/images/*/NN.jpg, root/masks/*/NN.png and root/Labels.txt."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "Labels.txt").write_text(LABELS)
    for number in range(count):
        for name, suffix, data in (
            ("images", "jpg", encoded(image_array(number, size), "JPEG")),
            ("masks", "png", color_mask(mask_array(number, size))),
        ):
            path = root / name / f"day{number % 2}" / f"{number:02d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def palette(root: Path) -> Palette:
    return Palette.read(root / "Labels.txt", ignore=["void"])
