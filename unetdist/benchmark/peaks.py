"""What this device does at most, measured: no datasheet says what a card or a shared core gives today.

The best of several calls: a peak is what is possible, and other programs only take from it.
"""

import torch

from unetdist.benchmark.stopwatch import seconds_per_call
from unetdist.model.limit import Peaks

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By precision, as the benchmarks name it; fp32 is TF32 where the GPU has it, as it is for convolutions."""
_MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
"""Far more than any cache."""


def measure_peaks(device: str | torch.device, precision: str) -> Peaks:
    """FLOP/s of a large matrix product (of random numbers: zeros run faster) and bytes/s of a copy, read + written."""
    device = torch.device(device)
    size = _MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    had_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        product_s = seconds_per_call(lambda: left @ right, device, of=min)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = had_tf32
    num_bytes = _COPY_BYTES[device.type]
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_per_call(lambda: target.copy_(source), device, of=min)
    return Peaks(2 * size**3 / product_s, 2 * num_bytes / copy_s)
