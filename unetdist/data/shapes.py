"""The built-in data set: circles, squares and triangles that differ only in their outline.

Colour, size and place are random and independent of the class; backgrounds are shaded and noisy, and shapes overlap. A
small U-Net learns it in minutes on a CPU; a model that sees only colours cannot.
"""

from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdist.data.labels import Label, Palette
from unetdist.errors import ConfigError
from unetdist.storage.files import write_text

# Classes of the shapes, which differ only in their number of `_CORNERS`.
PALETTE = Palette(
    (
        Label(0, "background", (0, 0, 0), 0),
        Label(1, "circle", (230, 80, 60), 1),
        Label(2, "square", (70, 160, 230), 2),
        Label(3, "triangle", (250, 200, 60), 3),
    )
)

_CORNERS = {1: 0, 2: 4, 3: 3}
_NUM_SHAPES = (4, 8)
_RADIUS = (0.11, 0.17)  # of the circle of the same area, by the smaller side of the picture
_MAX_TURN = 0.15  # radians from upright
_APART = 1.05  # of two radii between two centres: corners overlap, but no shape is hidden beyond recognition
_MIN_CONTRAST = 100.0  # Euclidean distance in RGB of a shape to the background
_NOISE = 4.0  # standard deviation, 0..255


def draw(index: int, *, seed: int, size: tuple[int, int] = (96, 96)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one image of up to eight shapes.

    Args:
        index: Number of the image; the same (index, seed, size) always gives the same image.
        seed: Seed of the data set, at least 0.
        size: Height and width in pixels, at least 16.

    Returns:
        Image, uint8 (H, W, 3), with smooth edges, and mask of class indices, uint8 (H, W), with crisp edges.

    Raises:
        ConfigError: The size is too small to tell the shapes apart.
    """
    height, width = size
    if min(size) < 16:
        raise ConfigError(f"size of the shapes ({height}, {width}) must be at least 16; use 96,96.")
    rng = np.random.default_rng([seed, index])
    y, x = np.mgrid[:height, :width].astype(np.float64)
    color = rng.uniform(60, 195, 3)
    slope = rng.uniform(-45, 45, (2, 1, 1, 1)) * [0.8, 1.0, 1.2]
    image = color + slope[0] * (x / width - 0.5)[..., None] + slope[1] * (y / height - 0.5)[..., None]
    mask = np.zeros(size, np.uint8)
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(*_NUM_SHAPES, endpoint=True)):
        label = int(rng.integers(1, 4))
        radius = min(size) * rng.uniform(*_RADIUS)
        center_x, center_y = rng.uniform(0.12, 0.88, 2) * [width, height]
        turn = rng.uniform(-_MAX_TURN, _MAX_TURN)
        if any(np.hypot(center_x - u, center_y - v) < _APART * (radius + r) for u, v, r in placed):
            continue
        placed.append((center_x, center_y, radius))
        distance = _outside(x - center_x, y - center_y, radius, _CORNERS[label], turn=turn)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        image = cover * _color_unlike(color, rng) + (1 - cover) * image
        mask[distance < 0] = label
    image += rng.normal(0, _NOISE, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def write_shapes(folder: str | PathLike[str], *, count: int, seed: int, size: tuple[int, int] = (96, 96)) -> None:
    """Write images/NNNNN.png, masks/NNNNN.png (colours) and Labels.txt, like a user's own data set."""
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, mask = draw(index, seed=seed, size=size)
        Image.fromarray(image).save(folder / "images" / f"{index:05d}.png")
        Image.fromarray(PALETTE.colorize(mask)).save(folder / "masks" / f"{index:05d}.png")
    lines = [f"{' '.join(map(str, label.color))} {label.name}\n" for label in PALETTE.labels]
    write_text(folder / "Labels.txt", "".join(lines))


def _outside(
    x: NDArray[np.float64], y: NDArray[np.float64], radius: float, corners: int, *, turn: float
) -> NDArray[np.float64]:
    """Distance in pixels to the edge of a shape around (0, 0), negative inside; 0 corners are a circle."""
    if corners == 0:
        return np.hypot(x, y) - radius
    # Polygons have the area of the circle, so that size does not reveal the class.
    apothem = radius * np.sqrt(np.pi / (corners * np.tan(np.pi / corners)))
    angles = turn + np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    sides = [x * np.cos(angle) + y * np.sin(angle) - apothem for angle in angles]
    return np.asarray(np.maximum.reduce(sides))


def _color_unlike(color: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    while True:
        other = rng.uniform(10, 245, 3)
        if np.linalg.norm(other - color) > _MIN_CONTRAST:
            return other
