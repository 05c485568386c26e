import pytest

from tests.apps.doctor.cases import case_of, findings_of, forget_last_class, level_of, only, write_data
from unetdist.apps.doctor import data, training
from unetdist.apps.doctor.command import leave
from unetdist.train import build
from unetdist.train.performance import FastPath


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def found_in(case):
    try:
        return findings_of(case, *data.CHECKS, *training.CHECKS)
    finally:
        leave(case)


def test_steps_are_made_and_timed_and_nothing_of_the_run_begins(folder):
    case = case_of(folder, trainer={"ema_decay": 0.9})
    found = found_in(case)
    assert {each.level for each in found} == {"ok"}
    assert only(found, "length").fact == "4 steps of 4 samples: 1.3 passes over the data"
    assert "images/s, mean of " in only(found, "training step").fact
    measured = case.measured
    assert measured.step_s > 0
    assert measured.checkpoint_bytes > 3 * measured.weights_bytes  # weights, two moments, averaged weights
    assert not (folder / "runs").exists()


def test_a_setting_that_cannot_be_trained_is_found(folder):
    found = found_in(case_of(folder, optim={"warmup_steps": 4}))
    bad = only(found, "training")
    assert (bad.level, "optim.warmup_steps (4) must be below the 4 steps" in bad.fact) == ("problem", True)
    assert "training step" not in {each.what for each in found}


def test_a_bad_label_ends_the_try_but_not_the_examination(folder):
    for name in ("train", "val"):
        forget_last_class(folder / name)
    found = found_in(case_of(folder))
    assert only(found, "train labels").level == "problem"
    assert "mask holds class index 2" in only(found, "first batch").fact


def test_a_loss_that_is_not_finite_is_a_problem(folder):
    case = case_of(folder, optim={"lr": 1e30, "kind": "sgd"})
    case.budget_s = 1.0
    (bad,) = [each for each in found_in(case) if each.level == "problem"]
    assert bad.what == "training step"
    assert "without a finite loss or gradient" in bad.fact
    assert "lower --optim.lr" in bad.remedy


def test_a_compiler_that_cannot_be_used_is_warned_of(folder, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(build, "choose", lambda *_: FastPath(compiler=broken))
    found = only(found_in(case_of(folder)), "compiler")
    assert found.level == "warning"
    assert "no kernel for this" in found.fact
    assert "--performance off" in found.remedy


def test_without_data_or_launch_nothing_is_tried(folder):
    case = case_of(folder)
    assert training._if_data(case) == "mend the data first"
    case.data["train"] = (None, None)
    case.launch_refused = True
    assert training._if_data(case) == "mend the launch first"


def test_memory_that_is_nearly_used_up_is_warned_of():
    rank = {"device": 95, "device_total": 100, "host": 10, "free": 100}
    assert level_of(training.judge_memory, "memory", [rank], "x") == ["warning"]
    (found,) = training.judge_memory("memory", [{**rank, "device": 50}, {**rank, "device": 20}], "x")
    assert (found.level, found.fact) == (
        "ok",
        "at most 50 B of 100 B on the GPU, 10 B per process; 100 B free then",
    )
