"""Predicts logits for every pixel at the image's own size: as a whole, in windows, mirrored, at several scales."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdist.distributed.collectives import gather_to
from unetdist.model.config import WHOLE_IMAGE, InferenceConfig

# Image (B, C, H, W), uint8 or float in 0..255 -> logits (B, num_classes, H, W), as a `UNet` does.
Predict = Callable[[Tensor], Tensor]

# Rows of logits that are interpolated at a time, so that memory stays bounded.
BAND_ROWS = 256

# Highest weight along one axis. Weights are integers, so that sums of whole numbers are exact in any order.
HIGHEST_WEIGHT = 255


class Team(NamedTuple):
    """Ranks that divide the windows of an image among them."""

    rank: int = 0
    world_size: int = 1
    owner: int = 0
    """Rank that joins the windows; the others get no result."""


ALONE = Team()


class Axis:
    """Windows along one axis of an image.

    They are spread evenly, and weighted by a Gaussian because a network sees a pixel best in the middle of its window
    (nnU-Net: Isensee et al. 2021, Nature Methods 18).

    Attributes:
        size: pixels of the image.
        window: pixels of a window, at most those of the image: then no pixel is made up, and an image that fits into
            the window is predicted as a whole.
        starts: first pixel of each window; the last window ends at the end of the image.
        weights: (window,) float64 integers 1..`HIGHEST_WEIGHT`, a Gaussian with the deviation window / 8.
        totals: (size,) float64, the sum of the weights of all windows at each pixel.
    """

    def __init__(self, size: int, window: int, overlap: float, device: torch.device) -> None:
        self.size, self.window = size, min(size, window)
        room, step = size - self.window, max(1.0, self.window * (1 - overlap))
        gaps = math.ceil(room / step)
        self.starts = [room * number // gaps for number in range(gaps)] + [room]
        deviations = (torch.arange(self.window, dtype=torch.float64) - (self.window - 1) / 2) * (8 / self.window)
        # Rounded on the host, so that every device uses the same integers.
        self.weights = (HIGHEST_WEIGHT * torch.exp(-(deviations**2) / 2)).round().clamp(min=1)
        self.totals = torch.zeros(size, dtype=torch.float64)
        for start in self.starts:
            self.totals[start : start + self.window] += self.weights
        self.weights, self.totals = self.weights.to(device), self.totals.to(device)


class Windows:
    """The windows of one image: row by row, from left to right."""

    def __init__(self, image: Tensor, window: tuple[int, int], overlap: float, *, batch_size: int) -> None:
        """Spread windows of (height, width) pixels over an image (1, C, H, W); see `InferenceConfig.overlap`."""
        self.image, self.batch_size = image, batch_size
        height, width = image.shape[-2:]
        self.rows = Axis(height, window[0], overlap, image.device)
        self.columns = Axis(width, window[1], overlap, image.device)
        self.corners = list(itertools.product(self.rows.starts, self.columns.starts))
        self.num_batches = math.ceil(len(self.corners) / batch_size)

    def batch(self, number: int) -> Tensor:
        """(batch_size, C, h, w) windows; the last batch repeats the last window to keep its shape (and its kernel)."""
        first = number * self.batch_size
        corners = [self.corners[min(at, len(self.corners) - 1)] for at in range(first, first + self.batch_size)]
        height, width = self.rows.window, self.columns.window
        return torch.cat([self.image[..., y : y + height, x : x + width] for y, x in corners])

    def join(self, results: Iterable[Tensor]) -> Iterator[Tensor]:
        """Join the windows' results into finished rows of the image, from top to bottom, as weighted means.

        Only a strip as high as a window is in memory. Sums follow the order of the windows.

        Args:
            results: (K, h, w) of each window in order; surplus results are ignored.

        Yields:
            (K, rows, W), the rows that no later window covers; float32, or float64 if the results are.
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


@torch.inference_mode()
def predict_logits(
    model: Predict, image: Tensor, *, resize: tuple[int, int] | None = None, inference: InferenceConfig = WHOLE_IMAGE
) -> Tensor:
    """Predict the logits of images at their own size.

    The shape of a batch decides which kernel a convolution uses, and another kernel rounds differently. For results
    that do not depend on the other images of a batch, callers keep the batch shape fixed; one image per call is the
    default everywhere in this project.

    Args:
        model: any callable from image to logits of the same height and width, in evaluation mode.
        image: (B, C, H, W) uint8, on the device of `model`.
        resize: (width, height) in pixels that the model was trained at; None: the image's own size.
        inference: settings.

    Returns:
        (B, num_classes, H, W) logits, or logarithms of averaged probabilities. With `resize` they are computed at that
        size and interpolated back.
    """
    if inference.window is not None:
        images = [predict_rows(model, one, resize=resize, inference=inference) for one in image[:, None]]
        return torch.stack([torch.cat(list(rows), dim=1) for rows in images])
    network = mean_probabilities(model, inference) if inference.averages else model
    logits = network(image if resize is None else _resized(image, resize))
    logits = _log(logits) if inference.averages else logits
    # Between logits of 8 bits, as bf16 has, interpolation would make classes tie.
    return logits if resize is None else _interpolated(_at_least_float32(logits), image.shape[-2:])


@torch.inference_mode()
def predict_rows(
    model: Predict,
    image: Tensor,
    *,
    resize: tuple[int, int] | None = None,
    inference: InferenceConfig = WHOLE_IMAGE,
    team: Team = ALONE,
) -> Iterator[Tensor]:
    """Predict one image (1, C, H, W), as `predict_logits` does, in bands of rows.

    With a window, only one strip of logits is in memory; with `resize` too, those at the training size as a whole.
    Collective if the team has several ranks: they take the batches of windows in turn, and the owner adds them up in
    the order of the windows, so that the result does not depend on which rank computed them.

    Yields:
        (num_classes, rows, W) logits from top to bottom; nothing on ranks other than the owner.
    """
    if inference.window is None:
        yield predict_logits(model, image, resize=resize, inference=inference)[0]
        return
    network = mean_probabilities(model, inference) if inference.averages else model
    seen = image if resize is None else _resized(image, resize)
    windows = Windows(seen, inference.window, inference.overlap, batch_size=inference.window_batch)
    results = _results(network, windows, team)
    if team.rank != team.owner:
        for _ in results:
            pass
        return
    strips = (_log(rows) if inference.averages else rows for rows in windows.join(results))
    yield from strips if resize is None else _interpolated_rows(torch.cat(list(strips), 1), image.shape[-2:])


def _results(network: Predict, windows: Windows, team: Team) -> Iterator[Tensor]:
    """Collective in a team. Yields the network's result for each window in order on the owner; surplus may follow."""
    last = windows.num_batches - 1
    for first in range(0, windows.num_batches, team.world_size):
        # In the last round ranks without a batch repeat the last one: they would only wait for the others.
        mine = _at_least_float32(network(windows.batch(min(first + team.rank, last))))
        for results in [mine] if team.world_size == 1 else gather_to(team.owner, mine):
            yield from results


def mean_probabilities(model: Predict, inference: InferenceConfig) -> Predict:
    """Wrap a model so that it returns probabilities (B, num_classes, H, W) averaged over mirror images and scales.

    With windows, each window is mirrored and scaled by itself, so that the window bounds the memory.
    """
    views = list(itertools.product(inference.scales, (False, True) if inference.flips else (False,)))

    def predict(image: Tensor) -> Tensor:
        total = torch.zeros((), device=image.device)
        for scale, is_mirrored in views:
            seen = image
            if scale != 1:
                size = [max(1, round(scale * length)) for length in image.shape[-2:]]
                seen = F.interpolate(image.float(), size, mode="bilinear", align_corners=False, antialias=True)
            logits = model(seen.flip(-1)).flip(-1) if is_mirrored else model(seen)
            logits = _at_least_float32(logits)
            total = total + _interpolated(logits, image.shape[-2:]).softmax(1)
        return total / len(views)

    return predict


def _resized(image: Tensor, resize: tuple[int, int]) -> Tensor:
    width, height = resize
    # The model was trained on shards that hold whole numbers.
    return resize_area(image, height=height, width=width).round().to(image.dtype)


def _interpolated(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _interpolated_rows(logits: Tensor, size: torch.Size) -> Iterator[Tensor]:
    """`_interpolated` of (K, h, w) in bands of rows."""
    (old, _), (new, width) = logits.shape[-2:], size
    for top in range(0, new, BAND_ROWS):
        rows = torch.arange(top, min(new, top + BAND_ROWS), device=logits.device) + 0.5
        places = (rows * (old / new) - 0.5).clamp(0, old - 1)
        above = places.long()
        fraction = (places - above).to(logits.dtype)[:, None]
        band = torch.lerp(logits[:, above], logits[:, (above + 1).clamp(max=old - 1)], fraction)
        yield _interpolated(band[None], torch.Size((band.shape[1], width)))[0]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm of probabilities that stays finite at 0."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def resize_area(image: Tensor, *, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) so that each new pixel is the mean of the area it covers; float32, same range.

    It averages like `cv2.INTER_AREA`, which resizes the images of shards; `F.interpolate(mode="area")` only agrees if
    the old size is a multiple of the new one.
    """
    rows = _area_weights(image.shape[-2], height, image.device)
    columns = _area_weights(image.shape[-1], width, image.device)
    with torch.autocast(image.device.type, enabled=False):  # in bf16 a third of the pixels would be off by 1
        return rows @ image.float() @ columns.T


def _area_weights(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old) weight of each old pixel in each new one; the rows sum to 1."""
    edges = torch.arange(new + 1, device=device, dtype=torch.float64) * (old / new)
    pixels = torch.arange(old, device=device, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * (new / old)).float()
