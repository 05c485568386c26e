"""An image in overlapping windows, and their results as one: strip by strip, so that no sum is as large as the image.

Windows as in nnU-Net (Isensee et al. 2021, "nnU-Net: a self-configuring method ...", Nature Methods 18): spread evenly,
and weighted by a Gaussian, because a network sees a pixel best from the middle of its window.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

HIGHEST_WEIGHT = 255
"""Along one axis. Weights are integers, so that sums of whole numbers are exact in any order."""


class Axis:
    """Windows along one axis of an image.

    Attributes:
        size: of the image, in pixels.
        window: its pixels; no more than the image has, so that none is made up, and an image that fits into the window
            is seen as without windows.
        starts: first pixel of each window; the last window ends where the image does.
        weights: (window,) float64 integers 1..`HIGHEST_WEIGHT`: a Gaussian with the deviation window / 8.
        totals: (size,) float64: the weights of all windows, summed at each pixel.
    """

    def __init__(self, size: int, window: int, overlap: float, device: torch.device) -> None:
        self.size, self.window = size, min(size, window)
        room, step = size - self.window, max(1.0, self.window * (1 - overlap))
        gaps = math.ceil(room / step)
        self.starts = [room * number // gaps for number in range(gaps)] + [room]
        deviations = (torch.arange(self.window, dtype=torch.float64) - (self.window - 1) / 2) * (
            8 / self.window
        )
        # Rounded on the host, beside any device to the same integers.
        self.weights = (HIGHEST_WEIGHT * torch.exp(-(deviations**2) / 2)).round().clamp(min=1)
        self.totals = torch.zeros(size, dtype=torch.float64)
        for start in self.starts:
            self.totals[start : start + self.window] += self.weights
        self.weights, self.totals = self.weights.to(device), self.totals.to(device)


class Windows:
    """The windows of one image: row by row, from left to right."""

    def __init__(self, image: Tensor, window: tuple[int, int], overlap: float, *, batch_size: int) -> None:
        """Spread windows.

        Args:
            image: (1, C, H, W).
            window: (height, width) in pixels.
            overlap: share of a window that its neighbour sees too, at least; 0 to below 1.
            batch_size: windows per batch.
        """
        self.image, self.batch_size = image, batch_size
        height, width = image.shape[-2:]
        self.rows = Axis(height, window[0], overlap, image.device)
        self.columns = Axis(width, window[1], overlap, image.device)
        self.corners = list(itertools.product(self.rows.starts, self.columns.starts))

    @property
    def num_batches(self) -> int:
        """Batches that hold all windows."""
        return math.ceil(len(self.corners) / self.batch_size)

    def batch(self, number: int) -> Tensor:
        """(batch_size, C, h, w) windows; the last batch is filled up with the last window.

        For kernels are chosen by shape, and another kernel rounds differently.
        """
        first = number * self.batch_size
        corners = [
            self.corners[min(at, len(self.corners) - 1)] for at in range(first, first + self.batch_size)
        ]
        height, width = self.rows.window, self.columns.window
        return torch.cat([self.image[..., y : y + height, x : x + width] for y, x in corners])

    def join(self, results: Iterable[Tensor]) -> Iterator[Tensor]:
        """Finished rows of the image, from top to bottom: weighted means of the windows' results.

        Held at a time is a strip as high as a window. The sums are made in the order of the windows.

        Args:
            results: (K, h, w) of each window, in their order; what follows the last is not looked at.

        Yields:
            (K, rows, W), rows as many as no later window sees; float32, or float64 if the results are.
        """
        rows, columns, result = self.rows, self.columns, iter(results)
        weights = rows.weights[:, None] * columns.weights
        strip = torch.zeros(0)
        for top, following in itertools.pairwise([*rows.starts, rows.size]):
            for left in columns.starts:
                values = next(result)
                if not len(strip):
                    strip = weights.new_zeros(len(values), rows.window, columns.size)
                strip[..., left : left + columns.window] += weights * values
            done = following - top
            finished = strip[:, :done].div_(rows.totals[top:following, None] * columns.totals)
            yield finished.to(torch.promote_types(values.dtype, torch.float32), copy=True)
            strip[:, : rows.window - done] = strip[:, done:].clone()
            strip[:, rows.window - done :] = 0
