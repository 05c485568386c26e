"""That it counts what a plain loop counts is shown in test_eval_plain.py."""

import sys

from accelerate.state import AcceleratorState, GradientState

from tests.benchmarks.loops.eval_ours import passes
from tests.benchmarks.loops.looped import small_job
from tests.benchmarks.peers.protocol import Job


def test_every_pass_counts_all_pictures_alike(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setattr(sys, "argv", ["loop", "fp32", "0", "4", "student"])
    endless = passes(Job(small_job(tmp_path, shards=True).shards, "", 16, 6))
    (first, _), (second, _) = next(endless), next(endless)
    assert (first == second).all()
    assert first.sum() == 6 * 32 * 24
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
