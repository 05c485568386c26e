"""What this device does at most, measured: no datasheet says what a card or a shared core gives today.

The best of several calls: a peak is what is possible, and other programs only take from it.
"""

import torch
import torch.nn.functional as F

from tests.benchmarks.stopwatch import seconds_per_call
from unetdist.model.limit import Peaks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By precision, as the benchmarks name it; fp32 is TF32 where the GPU has it, as it is for convolutions."""
_MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
_BATCH_SIZE = {"cuda": 64, "cpu": 1}
_CHANNELS, _SIDE = 256, 64
_COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}
"""Far more than any cache; twice that must fit a small GPU."""


def measure_peaks(device: str | torch.device, precision: str) -> Peaks:
    """FLOP/s of a large matrix product or convolution, whichever is faster, and bytes/s of a copy, read + written.

    Of random numbers, for on zeros a GPU is faster. On some CPUs the library of convolutions is twice as fast as that
    of matrix products.
    """
    device, dtype = torch.device(device), DTYPES[precision]
    had_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        flops = max(_product(device, dtype), _convolution(device, dtype))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = had_tf32
    return Peaks(flops, _copy(device))


def _product(device: torch.device, dtype: torch.dtype) -> float:
    size = _MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_per_call(lambda: left @ right, device, of=min)


def _convolution(device: torch.device, dtype: torch.dtype) -> float:
    channels, batch_size = _CHANNELS, _BATCH_SIZE[device.type]
    image = torch.randn(batch_size, channels, _SIDE, _SIDE, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    image, weight = (each.contiguous(memory_format=torch.channels_last) for each in (image, weight))
    seconds = seconds_per_call(lambda: F.conv2d(image, weight, padding=1), device, of=min)
    return 2 * batch_size * _SIDE**2 * channels**2 * 9 / seconds


def _copy(device: torch.device) -> float:
    num_bytes = _COPY_BYTES[device.type]
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds_per_call(lambda: target.copy_(source), device, of=min)
