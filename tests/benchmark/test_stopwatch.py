import time

import torch

from unetdist.benchmark.stopwatch import LEAST_CALLS, WARM_UP_CALLS, seconds_per_call

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
