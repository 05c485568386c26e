import pytest
import torch

from unetdist.benchmark import peaks
from unetdist.benchmark.peaks import DTYPES, measure_peaks


@pytest.mark.parametrize("precision", DTYPES)
def test_peaks_are_flops_and_bytes_per_second(monkeypatch, precision):
    sizes = {"_MATRIX_SIZE": {"cpu": 64}, "_COPY_BYTES": {"cpu": 1 << 20}}
    for name, value in sizes.items():
        monkeypatch.setattr(peaks, name, value)
    seconds = iter([2.0, 0.5])
    done = []

    def clock(call, device, *, of):
        done.append((call().dtype, of))
        return next(seconds)

    monkeypatch.setattr(peaks, "seconds_per_call", clock)
    found = measure_peaks("cpu", precision)
    assert (found.flops, found.bandwidth) == (2 * 64**3 / 2.0, 2 * (1 << 20) / 0.5)
    assert done == [(DTYPES[precision], min), (torch.uint8, min)]
    assert not torch.backends.cuda.matmul.allow_tf32
