"""From an image to the logits of every pixel at the image's own size: whole, in windows, flipped, at several scales."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdist.distributed.collectives import gather_to
from unetdist.errors import ConfigError
from unetdist.model.sliding_window import Windows

Predict = Callable[[Tensor], Tensor]
"""Image (B, C, H, W), uint8 or float in 0..255 -> logits (B, num_classes, H, W), as a `UNet` does."""

BAND_ROWS = 256
"""Rows of an image whose logits are interpolated at a time, where memory is bounded."""


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How an image is predicted: by default as a whole, once."""

    window: tuple[int, int] | None = None
    """Predict in windows of this (height, width) in pixels of what the network sees, best no smaller than what it was
    trained on; None: the image as a whole."""

    overlap: float = 0.5
    """Share of a window that its neighbour sees too, 0 to below 1."""

    window_batch: int = 2
    """Windows per forward pass."""

    flips: bool = False
    """Average the probabilities of the image and its mirror image, left and right exchanged. Not upside down: scenes
    have a sky and a ground, and a network that never saw them exchanged would lose by it."""

    scales: tuple[float, ...] = (1.0,)
    """Average the probabilities of the image at these sizes, relative to the one trained at. They take more than they
    give, unless `augment.scale_min` and `scale_max` showed the network such sizes."""

    def __post_init__(self) -> None:
        if self.window is not None and min(self.window) < 1:
            raise ConfigError(
                f"inference.window ({list(self.window)}) must be 1 or more pixels; use [512, 512]."
            )
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"inference.overlap ({self.overlap}) must be at least 0 and below 1; use 0.5.")
        if self.window_batch < 1:
            raise ConfigError(f"inference.window_batch ({self.window_batch}) must be at least 1; use 2.")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ConfigError(
                f"inference.scales ({list(self.scales)}) must be one or more numbers above 0; use [0.75, 1.0, 1.25]."
            )

    @property
    def averages(self) -> bool:
        """Whether an image is seen more than once, or at another scale."""
        return self.flips or self.scales != (1.0,)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The ranks that share the windows of an image."""

    rank: int = 0
    world_size: int = 1
    owner: int = 0
    """The rank that puts the windows together; the others get no result."""


WHOLE_IMAGE = InferenceConfig()
ALONE = Team()


@torch.inference_mode()
def predict_logits(
    model: Predict,
    image: Tensor,
    *,
    resize: tuple[int, int] | None = None,
    inference: InferenceConfig = WHOLE_IMAGE,
) -> Tensor:
    """Logits of whole images at their own size.

    The kernels of a convolution are chosen by the shape of the batch, and another kernel rounds differently.
    So callers whose result for an image must not depend on its company run a fixed batch shape; one image per
    call is the default everywhere in this project.

    Args:
        model: any callable from image to logits of the same height and width, in evaluation mode.
        image: (B, C, H, W) uint8, on the device of `model`.
        resize: (width, height) in pixels that the model was trained at; None: the image as it is.
        inference: settings.

    Returns:
        (B, num_classes, H, W) logits; where probabilities are averaged, their logarithms. With `resize` they are
        computed at that size and interpolated back.
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
    """`predict_logits` of one image in portions; with a window, no more than a strip of them is in memory.

    Collective where the team is more than one: its ranks take the batches of windows in turn, and the owner adds
    them up in the order of the windows, so that the result does not depend on who computed them. With `resize` the
    logits of the image as trained are in memory, and those at its own size in portions.

    Args:
        model: as of `predict_logits`.
        image: (1, C, H, W) uint8.
        resize: as of `predict_logits`.
        inference: settings.
        team: who shares the windows.

    Yields:
        (num_classes, rows, W) logits, from top to bottom; nothing on ranks that are not the owner.
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
    """Collective, in a team. What the network gives for each window in their order, on the owner; more may follow."""
    last = windows.num_batches - 1
    for first in range(0, windows.num_batches, team.world_size):
        # Who is left without a batch in the last round computes it too: the others would be waited for anyway.
        mine = _at_least_float32(network(windows.batch(min(first + team.rank, last))))
        for results in [mine] if team.world_size == 1 else gather_to(team.owner, mine):
            yield from results


def mean_probabilities(model: Predict, inference: InferenceConfig) -> Predict:
    """From an image (B, C, H, W) to the mean probabilities (B, num_classes, H, W) of its mirror images and scales.

    Windows are mirrored and scaled each by itself, which bounds memory by the window.
    """
    views = list(itertools.product(inference.scales, (False, True) if inference.flips else (False,)))

    def predict(image: Tensor) -> Tensor:
        total = torch.zeros((), device=image.device)
        for scale, is_mirrored in views:
            seen = _scaled(image, scale)
            logits = model(seen.flip(-1)).flip(-1) if is_mirrored else model(seen)
            logits = _at_least_float32(logits)
            total = total + _interpolated(logits, image.shape[-2:]).softmax(1)
        return total / len(views)

    return predict


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(1, round(scale * length)) for length in image.shape[-2:]]
    return F.interpolate(image.float(), size, mode="bilinear", align_corners=False, antialias=True)


def _resized(image: Tensor, resize: tuple[int, int]) -> Tensor:
    width, height = resize
    # Rounded, because the shards that the model learned from hold whole numbers.
    return resize_area(image, height=height, width=width).round().to(image.dtype)


def _interpolated(logits: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _interpolated_rows(logits: Tensor, size: torch.Size) -> Iterator[Tensor]:
    """`_interpolated` of (K, h, w), in bands of rows."""
    (old, _), (new, width) = logits.shape[-2:], size
    for top in range(0, new, BAND_ROWS):
        rows = torch.arange(top, min(new, top + BAND_ROWS), device=logits.device) + 0.5
        places = (rows * (old / new) - 0.5).clamp(0, old - 1)
        above = places.long()
        share = (places - above).to(logits.dtype)[:, None]
        band = torch.lerp(logits[:, above], logits[:, (above + 1).clamp(max=old - 1)], share)
        yield _interpolated(band[None], torch.Size((band.shape[1], width)))[0]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log(probabilities: Tensor) -> Tensor:
    """Their logarithm, finite where one of them is 0."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def resize_area(image: Tensor, *, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) so that each new pixel is the mean of the area it covers; float32, same range.

    The averaging of `cv2.INTER_AREA`, with which shards are resized; `F.interpolate(mode="area")` agrees only
    where the old size is a multiple of the new one.
    """
    rows = _area_weights(image.shape[-2], height, image.device)
    columns = _area_weights(image.shape[-1], width, image.device)
    with torch.autocast(image.device.type, enabled=False):  # in bf16 a third of the pixels would be off by 1
        return rows @ image.float() @ columns.T


def _area_weights(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old) share of each old pixel in each new one; the rows sum to 1."""
    edges = torch.arange(new + 1, device=device, dtype=torch.float64) * (old / new)
    pixels = torch.arange(old, device=device, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp(min=0) * (new / old)).float()
