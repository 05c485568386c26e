"""Parts of other samples laid over those of a micro-batch, on the device: the twin of `mixed`.

What is taken is drawn on the host; but which classes a partner shows, and so which are half of them, only the device
knows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from unetdist.data.mix import Mix, MixDraw

Packed = npt.NDArray[np.float64]

_BOX = 4
"""What is told of a sample are the rectangle that is taken, and from here on a number for each class: the half with the
smaller ones is taken."""
_NEVER = 2.0
"""The number of a class that is not; those that are drawn are below 1."""
_CLASSES = 16
"""That are counted at a time, for the sake of memory."""


def pack_mixes(mixes: Sequence[Mix | None], *, size: tuple[int, int], num_classes: int) -> Packed:
    """What `mix` is told of the samples, (B, 4 + num_classes); `size`: (height, width) of the pictures."""
    packed = np.full((len(mixes), _BOX + num_classes), _NEVER)
    packed[:, :_BOX] = [mix.box(size) if mix else (0, 0, 0, 0) for mix in mixes]
    for told, mix in zip(packed, mixes, strict=True):
        if mix and not mix.is_cut:
            told[_BOX:] = mix.draws[MixDraw.CLASSES :]
    return packed


def mix(image: Tensor, mask: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of `image` (2B, h, w, C) and `mask` (2B, h, w) with parts of the second, their partners.

    `packed`: (B, 4 + num_classes), as from `pack_mixes`.
    """
    image, partner_image = image.chunk(2)
    mask, partner = mask.chunk(2)
    top, left, bottom, right = packed[:, :_BOX, None, None].unbind(1)
    row = torch.arange(mask.shape[1], device=mask.device)[:, None]
    column = torch.arange(mask.shape[2], device=mask.device)
    is_cut = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    is_taken = is_cut | _is_of(_classes(partner, packed[:, _BOX:]), partner)
    return torch.where(is_taken[..., None], partner_image, image), torch.where(is_taken, partner, mask)


def count_classes(mask: Tensor, num_classes: int) -> Tensor:
    """(B, num_classes) pixels of each class of `mask` (B, h, w)."""
    classes = torch.arange(num_classes, device=mask.device, dtype=torch.uint8)[:, None, None]
    some_at_once = (classes[start : start + _CLASSES] for start in range(0, num_classes, _CLASSES))
    return torch.cat([(mask[:, None] == some).sum(dim=(2, 3)) for some in some_at_once], dim=1)


def _classes(partner: Tensor, draws: Tensor) -> Tensor:
    """(B, num_classes) whether a class is taken: of those with pixels in `partner` half, rounded up, by `draws`."""
    is_shown = (count_classes(partner, draws.shape[1]) > 0) & (draws < _NEVER)
    is_before = (draws[:, None] < draws[..., None]) & is_shown[:, None]
    return is_shown & (is_before.sum(dim=2) < (is_shown.sum(dim=1, keepdim=True) + 1) // 2)


def _is_of(is_taken: Tensor, mask: Tensor) -> Tensor:
    """(B, h, w) whether the class of a pixel of `mask` is one of those taken, (B, num_classes)."""
    table = F.pad(is_taken, (0, 256 - is_taken.shape[1]))
    sample = torch.arange(len(mask), device=mask.device)[:, None, None]
    return table[sample, mask.long()]
