"""A data set that gives away any mistake: the picture's brightness is its mask, its tint tells where it was cut.

Each picture is a board of dark and bright cells, drawn at random for each; the mask is 1 on bright cells. Red grows
and blue fades from left to right. So a batch shows by itself whether image and mask belong together, to the pixel,
whether crops and flips are random, and whether the order is shuffled.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.benchmarks.peers.protocol import UNFILTERED_MASKS
from unetdist.data.shards import encode_mask

CELL_PX = 8
DARK, BRIGHT = 60, 190
TINT = 40
"""Of red and blue at the edges; luma stays as it is."""
NUM_PICTURES = 64
LEAST_EQUAL = 0.995
"""Of a mask's pixels: JPEG blurs the cells' edges, but a mask that is one pixel off loses a twentieth."""

Array = npt.NDArray[Any]


def write_ruler(folder: Path, size: tuple[int, int]) -> None:
    """Write images/, masks/ (with PNG's filters and without) and Labels.txt, unless they are there.

    `size`: (height, width) of the pictures.
    """
    labels = folder / "Labels.txt"  # Written last.
    if labels.exists():
        return
    for name in ("images", "masks", UNFILTERED_MASKS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    height, width = size
    ramp = np.linspace(-TINT, TINT, width)
    for number in range(NUM_PICTURES):
        rng = np.random.default_rng(number)
        cells = rng.integers(0, 2, (-(-height // CELL_PX), -(-width // CELL_PX)), dtype=np.uint8)
        mask = cells.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)[:height, :width]
        luma = np.where(mask, BRIGHT, DARK)
        # Red and blue weigh 0.299 and 0.114 in luma; green makes up for their change.
        image = np.stack([luma + ramp, luma - (0.299 - 0.114) / 0.587 * ramp, luma - ramp], axis=-1)
        picture = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
        picture.save(folder / "images" / f"{number:05d}.jpg", quality=95, subsampling="4:2:0")
        Image.fromarray(mask).save(folder / "masks" / f"{number:05d}.png")
        (folder / UNFILTERED_MASKS / f"{number:05d}.png").write_bytes(encode_mask(mask))
    labels.write_text("id r g b name\n0 0 0 0 dark\n1 255 255 255 bright\n", encoding="utf-8")


def shape_problem(
    images: Array, masks: Array, *, batch_size: int, crop: int, num_classes: int, ignored: int = 255
) -> str | None:
    """Why stacked batches (N, B, ...) are not what was asked for; None: they are."""
    if images.dtype != np.uint8:
        return f"images are {images.dtype}, not uint8"
    if masks.dtype not in (np.uint8, np.int64):
        return f"masks are {masks.dtype}, not uint8 or int64"
    batch = images.shape[1:]
    if batch not in ((batch_size, crop, crop, 3), (batch_size, 3, crop, crop)):
        return f"images are {batch}, not {batch_size} of 3x{crop}x{crop}"
    if masks.size != images.size // 3:
        return f"masks are {masks.shape[1:]}, not {batch_size} of {crop}x{crop}"
    values = np.unique(masks)
    unknown = values[(values >= num_classes) & (values != ignored)]
    return f"masks hold {unknown.tolist()}, which is no class" if len(unknown) else None


def pairing_problem(images: Array, masks: Array) -> str | None:
    """Why batches of the ruler, stacked (N, B, ...), show a wrong path; None: they show a right one."""
    crop = images.shape[-2]
    pixels = images if images.shape[-1] == 3 else np.moveaxis(images, 2, -1)
    pixels = pixels.reshape(-1, crop, crop, 3).astype(np.float32)
    targets = masks.reshape(-1, crop, crop)
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    equal = ((luma > (DARK + BRIGHT) / 2) == targets).mean((1, 2))
    if equal.min() < LEAST_EQUAL:
        bad = int((equal < LEAST_EQUAL).sum())
        return f"{bad} of {len(equal)} masks do not belong to their images (worst: {100 * equal.min():.0f} % equal)"
    tint = (pixels[..., 0] - pixels[..., 2]).mean(1)
    slope = tint[:, crop // 2 :].mean(1) - tint[:, : crop // 2].mean(1)
    if not 0.2 < (slope < 0).mean() < 0.8:
        return f"{int((slope < 0).sum())} of {len(slope)} samples are flipped, not about half"
    if len(np.unique(tint.mean(1).round())) < 4:
        return "all crops begin at the same column"
    boards = {target[::CELL_PX, ::CELL_PX].tobytes() for target in targets}
    return None if len(boards) > 1 else "all samples are the same picture"
