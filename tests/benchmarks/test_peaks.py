import pytest
import torch

from tests.benchmarks import peaks
from tests.benchmarks.peaks import DTYPES, measure_peaks


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("product_s", "convolution_s"), [(2.0, 1e9), (1e9, 2.0)])
def test_peaks_are_flops_and_bytes_per_second(monkeypatch, precision, product_s, convolution_s):
    for name, value in (("_MATRIX_SIZE", {"cpu": 64}), ("_COPY_BYTES", {"cpu": 1 << 20}), ("_SIDE", 4)):
        monkeypatch.setattr(peaks, name, value)
    seconds = iter([product_s, convolution_s, 0.5])
    done = []

    def clock(call, device, *, of):
        done.append((call().dtype, of))
        return next(seconds)

    monkeypatch.setattr(peaks, "seconds_per_call", clock)
    found = measure_peaks("cpu", precision)
    flops = 2 * 64**3 if product_s == 2 else 2 * 16 * 256**2 * 9
    assert (found.flops, found.bandwidth) == (flops / 2.0, 2 * (1 << 20) / 0.5)
    assert done == [(DTYPES[precision], min), (DTYPES[precision], min), (torch.uint8, min)]
    assert not torch.backends.cuda.matmul.allow_tf32
