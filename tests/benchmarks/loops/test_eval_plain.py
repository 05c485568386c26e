import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.benchmarks.loops import eval_ours, eval_plain
from tests.benchmarks.loops.looped import NUM_CLASSES, small_job
from tests.benchmarks.peers.protocol import Job


@pytest.fixture
def fresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_ours_and_plain_loops_count_the_same(tmp_path, monkeypatch, fresh):
    job = small_job(tmp_path, shards=True)
    words = ["fp32", "0", "2", "student"]
    counts = []
    for passes, place, more in (
        (eval_ours.passes, job.shards, []),
        (eval_plain.passes, job.pictures, [str(NUM_CLASSES), "plain"]),
        (eval_plain.passes, job.pictures, [str(NUM_CLASSES), "best"]),
    ):
        monkeypatch.setattr(sys, "argv", ["loop", *words, *more])
        counted, _ = next(passes(Job(str(Path(place)), "", 16, 6)))
        counts.append(counted)
    assert counts[0].sum() == 6 * 32 * 24
    for plain in counts[1:]:
        assert np.abs(plain - counts[0]).sum() <= 0.01 * counts[0].sum()
