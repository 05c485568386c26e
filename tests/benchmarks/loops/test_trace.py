import pytest

from tests.benchmarks.loops.trace import PARTS, own_time, split_of, union


def annotation(name, begin, end):
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": begin, "dur": end - begin}


def launch(correlation, when, cat="cuda_runtime"):
    return {
        "ph": "X",
        "cat": cat,
        "name": "launch",
        "ts": when,
        "dur": 1,
        "args": {"correlation": correlation},
    }


def on_gpu(correlation, begin, end, name="conv", cat="kernel"):
    args = {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin, "args": args}


def test_a_range_counts_without_those_inside_it():
    ranges = [("optimizer", (0, 100)), ("forward", (10, 30)), ("backward", (30, 60)), ("data", (100, 110))]
    assert own_time(ranges) == {"optimizer": 50, "forward": 20, "backward": 30, "data": 10}


def test_on_the_host_the_rest_is_other():
    events = [
        annotation("step: forward", 0, 400_000),
        annotation("step: data", 500_000, 600_000),
        annotation("elsewhere", 0, 9),
    ]
    split = split_of([*events, {"ph": "M", "name": "process_name"}], 1.0, on_gpu=False)
    assert tuple(split) == PARTS
    assert split["forward"] == pytest.approx(0.4)
    assert split["data"] == pytest.approx(0.1)
    assert split["other"] == pytest.approx(0.5)


def test_work_of_the_gpu_counts_where_the_host_launched_it():
    events = [
        annotation("step: data", 0, 10),
        annotation("step: forward", 10, 20),
        annotation("step: backward", 20, 30),
        launch(1, 12),
        launch(2, 25, "cuda_driver"),
        launch(3, 5),
        launch(4, 26),
        launch(5, 40),
        on_gpu(1, 100, 200),
        on_gpu(2, 200, 260, "triton_fused"),
        on_gpu(3, 0, 4, "Memcpy HtoD (Pinned -> Device)", "gpu_memcpy"),
        on_gpu(4, 230, 300, "ncclDevKernel_AllReduce"),
        on_gpu(5, 300, 301),
        on_gpu(99, 301, 303),
    ]
    split = {name: 1e6 * value for name, value in split_of(events, 320e-6, on_gpu=True).items()}
    assert split["forward"] == pytest.approx(100)
    assert split["backward"] == pytest.approx(60)
    assert split["copy"] == pytest.approx(4)
    assert split["communication"] == pytest.approx(40)  # what runs beside the backward pass is not in the way
    assert split["data"] == pytest.approx(6)  # while the GPU copied, nobody waited for data
    assert sum(split.values()) == pytest.approx(320)


def test_spans_that_overlap_are_one():
    assert union([(5, 7), (0, 2), (1, 4), (7, 8)]) == [(0, 4), (5, 8)]
