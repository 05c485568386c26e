"""Tensors copied to the host's memory in the shape of a safetensors file, so that writing them is no more work.

The library's own `save` copies each tensor twice more, and holds Python's lock meanwhile: 1.6 s for 500 MB, in which no
step would be trained. To hash and to write these bytes does not hold it.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a model, an optimizer or a loss scaler keeps, as safetensors calls it."""


class HostCopy:
    """Host memory for one copy, used again by the next; pinned where the tensors come from a GPU."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> memoryview:
        """The bytes of a safetensors file of these tensors; valid until the next call, which writes over them."""
        # The widest first, so that each begins where its type may begin.
        ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
        header = _header(ordered)
        size = len(header) + sum(value.nbytes for value in ordered.values())
        on_gpu = any(value.is_cuda for value in ordered.values())
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        memory = self._memory[:size]
        memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        start = len(header)
        for value in ordered.values():
            place = memory[start : start + value.nbytes].view(value.dtype).view(value.shape)
            place.copy_(value, non_blocking=True)
            start += value.nbytes
        if on_gpu:
            torch.cuda.synchronize()
        return memory.numpy().data


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """What opens a safetensors file: its own length and, as JSON, where each tensor lies behind it."""
    places: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        places[name] = {
            "dtype": DTYPE_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(places).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
