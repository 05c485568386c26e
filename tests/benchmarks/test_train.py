"""Parts; the whole is run in tests/launch/test_benchmark.py."""

import math
from contextlib import ExitStack

import pytest

from tests.benchmarks.contenders import Contender, VoidError
from tests.benchmarks.loops.everybody import EVERYBODY, PEERS
from tests.benchmarks.loops.test_protocol import JOB
from tests.benchmarks.source import Pictures
from tests.benchmarks.train import (
    NUM_CLASSES,
    Row,
    TrainCase,
    TrainPlan,
    look_inside,
    loss_problems,
    prepare,
    rows_of,
    start,
    variables_of,
)
from unetdist.errors import ConfigError


def plan_in(folder, **changes) -> TrainPlan:
    given = {
        "work": folder,
        "peers_python": "/no/such/python",
        "against": PEERS[:2],
        "precisions": ("fp32",),
        "num_workers": 0,
        "num_samples": 4,
        "num_rounds": 1,
        "seconds": 0.01,
    }
    return TrainPlan(**{**given, **changes})


def test_ours_has_one_row_and_the_others_one_for_each_precision(tmp_path):
    plan = plan_in(tmp_path, against=(*EVERYBODY[:1], *PEERS[:1]), precisions=("bf16", "fp16"))
    names = [name for name, _, _ in rows_of(plan)]
    assert names == ["ours bf16", "ours-off bf16", "accelerate bf16", "accelerate fp16"]


def test_pictures_are_larger_than_the_crop_and_shapes_have_spare_classes(tmp_path):
    job = prepare(TrainCase("student", 32, 24, 2), Pictures(None, None, None), plan_in(tmp_path), tmp_path)
    assert (job.height, job.width, job.num_classes, job.widths[0]) == (24, 32, NUM_CLASSES, 16)
    lines = (tmp_path / "pictures" / "Labels.txt").read_text().splitlines()
    assert len(lines) == 1 + NUM_CLASSES
    assert (tmp_path / "formats" / "shards" / "manifest.json").exists()


def test_a_cold_start_finds_nothing_that_was_compiled(tmp_path):
    left = tmp_path / "ours.compiled" / "inductor"
    left.mkdir(parents=True)
    assert variables_of(plan_in(tmp_path), tmp_path / "ours.log") == {}
    assert left.exists()
    variables = variables_of(plan_in(tmp_path, is_cold=True), tmp_path / "ours.log")
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == str(left)
    assert not left.exists()


def row(loss):
    return Row("name", "title", "fp32", loss=loss)


def test_a_loss_unlike_the_others_is_told():
    rows = {"a": row(1.0), "b": row(1.1), "c": row(2.4), "d": row(math.nan), "e": row(0.2)}
    problems = loss_problems(rows, list(rows))
    assert set(problems) == {"c", "d", "e"}
    assert problems["c"] == "its loss after the steps of the check is 2.400, that of all in the middle 1.050"
    assert loss_problems({"d": row(math.nan)}, ["d"]).keys() == {"d"}


def test_a_python_that_does_not_run_is_named(tmp_path):
    with_package = Contender("made-up", "made up", "made_up", packages=("lightning",))
    with (
        ExitStack() as stack,
        pytest.raises(ConfigError, match=r"--peers-python \(/no/such/python\) does not run .*that holds"),
    ):
        start(stack, with_package, JOB, row(1.0), plan_in(tmp_path), tmp_path / "log")


def test_the_inside_of_a_step_is_kept(tmp_path):
    class Process:
        def ask(self, do, **arguments):
            if do == "split":
                raise VoidError("no profiler")
            return {"peak_gb": 2.0, "versions": {"torch": "2"}, "syncs": 1.0}

    kept = row(1.0)
    with pytest.raises(VoidError):
        look_inside(Process(), kept, plan_in(tmp_path))
    assert (kept.peak_gb, kept.syncs, kept.versions) == (2.0, 1.0, {"torch": "2"})
