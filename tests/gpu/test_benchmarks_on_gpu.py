"""The benchmarks measure a GPU's own time, and their loops learn there."""

from dataclasses import asdict

import pytest
import torch

from tests.benchmarks.data_contenders import Job, write_our_shards
from tests.benchmarks.limits import measure_peaks, seconds_per_call
from tests.benchmarks.pictures import Size, write_test_card
from tests.benchmarks.train_contenders import DTYPES, TrainJob, check

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


def test_a_short_call_is_timed_without_its_launch():
    number = torch.zeros((), device=GPU)
    assert 0 < seconds_per_call(lambda: number.add_(1), GPU) < 0.001


def test_every_precision_has_peaks():
    for precision in DTYPES:
        peaks = measure_peaks(GPU, precision)
        assert peaks.flops > 1e12
        assert peaks.bandwidth > 1e11


@pytest.mark.parametrize("precision", DTYPES)
def test_loops_learn_in_every_precision(tmp_path, precision):
    write_test_card(tmp_path / "pictures", Size(64, 48), num_pictures=8)
    job = Job(str(tmp_path / "pictures"), str(tmp_path / "formats"), crop=32, batch_size=4)
    shards = write_our_shards(job)
    for name in ("accelerate", "milesial", "ours-off"):
        given = TrainJob(job.pictures, shards, 32, 48, 4, num_classes=2, widths=[4, 8], precision=precision, lr=0.01)
        assert check(name, asdict(given), 40, ["torch"])["loss"] < 0.6  # It began near log 2.
