"""Finds copies between devices, each of which makes the host wait unless it comes from pinned memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class NoCopies(TorchDispatchMode):
    """A copy from one device to another raises; so does every read-back, if the device is `meta`."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in COPIES:
            tensors = [value for value in (*args, out) if isinstance(value, torch.Tensor)]
            devices = {tensor.device.type for tensor in tensors}
            assert len(devices) == 1, f"{func} between {' and '.join(sorted(devices))}"
        return out
