import time
from dataclasses import dataclass

import torch

from tests.benchmarks import stopwatch
from tests.benchmarks.stopwatch import LEAST_CALLS, WARM_UP_CALLS, seconds_per_call

CPU = torch.device("cpu")


def test_the_median_of_several_calls_after_a_warm_up():
    calls = []
    seconds = seconds_per_call(lambda: (calls.append(1), time.sleep(0.02)), CPU, budget_s=0)
    assert len(calls) == WARM_UP_CALLS + LEAST_CALLS
    assert seconds >= 0.02


def test_quick_calls_fill_the_budget():
    calls = []
    seconds_per_call(lambda: (calls.append(1), time.sleep(0.001)), CPU, budget_s=0.03)
    assert len(calls) > WARM_UP_CALLS + LEAST_CALLS


def test_a_peak_is_the_best_call():
    waits = iter([0.0, 0.0, 0.05, 0.001, 0.05, 0.05, 0.05])
    assert seconds_per_call(lambda: time.sleep(next(waits)), CPU, budget_s=0, of=min) < 0.05


def test_on_a_gpu_calls_queue_up_before_they_are_timed(monkeypatch):
    done = []

    @dataclass
    class Event:
        enable_timing: bool
        at_ms: int = 0

        def record(self):
            done.append("mark")
            self.at_ms = 10 * done.count("call") ** 2

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, later):
            return float(later.at_ms - self.at_ms)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(stopwatch, "CALLS_AT_ONCE", 3)
    assert stopwatch._on_cuda(lambda: done.append("call")) == [0.010, 0.030, 0.050]
    assert done == ["sleep", "mark", *["call", "mark"] * 3, "wait"]
