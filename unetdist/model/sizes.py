"""Images of any size through levels that halve evenly: padding before, cropping after."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> the same with its last row and column repeated to multiples of `factor`, at least twice it.

    Twice, so that the bottleneck is 2x2 or more: batch and instance norm cannot train on a single value. Always done,
    even by nothing: a test of the size would tie an exported model to the sizes that it was traced with.
    """
    bottom, right = (_missing(size, factor) for size in x.shape[-2:])
    padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return padded.contiguous(memory_format=torch.channels_last)  # On CUDA padding forgets the layout.


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> its upper left (B, C, height, width)."""
    if _is_exporting():
        # A slice's strides say whether it cut anything: they would tie the exported model to sizes that do.
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        return x.index_select(-2, rows).index_select(-1, columns)
    return x[..., :height, :width]


def _missing(size: int, factor: int) -> int:
    """How much to add to `size` for a multiple of `factor` that is at least twice it."""
    least, even = 2 * factor - size, -size % factor
    if not _is_exporting():
        return max(least, even)  # torch.compile takes no sym_max of plain numbers in torch 2.11
    # max would compare the sizes, and tie the exported model to the result.
    missing: int = torch.sym_max(least, even)  # type: ignore[no-untyped-call]
    return missing


def _is_exporting() -> bool:
    """Whether a graph for any size is being made; inside torch.compile torch 2.11 says so too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
