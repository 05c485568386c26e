"""The built-in shapes as a source, for a trial without any data."""

from dataclasses import dataclass

import numpy as np

from unetdist.data.shapes import PALETTE, draw
from unetdist.errors import ConfigError
from unetdist.sharding.pictures import encode
from unetdist.sharding.sources import Sample, Source

_GUESSED_BYTES = 20_000


@dataclass(frozen=True)
class ShapesReader:
    """Draws picture `row` when it is read."""

    seed: int

    def read(self, sample: Sample) -> tuple[bytes, bytes]:
        """Encoded image and encoded colour mask."""
        image, mask = draw(sample.row, seed=self.seed)
        return encode(image, "png"), encode(np.ascontiguousarray(PALETTE.colorize(mask)), "png")


def from_shapes(count: int, *, seed: int) -> Source:
    """`count` pictures of the data set `seed`; their classes are `unetdist.data.shapes.PALETTE`."""
    if count < 1:
        raise ConfigError(f"shapes ({count}) must be 1 or more; use 400.")
    samples = (
        Sample(
            key=f"{number:05d}",
            image=f"shapes:{seed}:{number}:image",
            mask=f"shapes:{seed}:{number}:mask",
            row=number,
            num_bytes=_GUESSED_BYTES,
        )
        for number in range(count)
    )
    return Source(tuple(samples), (), ShapesReader(seed))
