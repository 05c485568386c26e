import pytest
import torch

from tests.benchmarks.peaks import DTYPES, measure_peaks
from tests.benchmarks.stopwatch import seconds_per_call

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


def test_a_short_call_is_timed_without_its_launch():
    number = torch.zeros((), device=GPU)
    seconds = seconds_per_call(lambda: number.add_(1), GPU)
    assert 0 < seconds < 0.001


def test_every_precision_has_peaks():
    for precision in DTYPES:
        peaks = measure_peaks(GPU, precision)
        assert peaks.flops > 1e12
        assert peaks.bandwidth > 1e11
