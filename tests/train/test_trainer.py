"""The loop in one process; what holds over several is in tests/distributed/test_equivalence.py."""

import json
import math
import re

import pytest
import torch

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.errors import CheckpointError, TrainingError
from unetdist.model.saved_model import load_model
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.run_status import Status, read_status


@pytest.fixture
def build(tmp_path):
    write_shards(tmp_path / "train", 9)
    write_shards(tmp_path / "val", 3)
    trainers = []

    def build(**sections):
        if trainers:
            trainers[-1].__exit__()  # it holds the folder of the run
        values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs", **sections)
        trainers.append(build_trainer(settings.from_mapping(Config, values)))
        return trainers[-1]

    yield build
    for trainer in trainers[-1:]:
        trainer.__exit__()


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_weights_checkpoints_metrics_settings_and_status(build, tmp_path):
    assert build(trainer={"max_steps": 4, "eval_every": 2}).fit()
    run = tmp_path / "runs" / "tiny"
    assert {path.name for path in run.iterdir()} == {
        "best",
        "last",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        ".lock",
    }
    assert read_status(run) == Status(state="finished", step=4, attempts=1)
    best = load_model(run / "best").config
    validations = [line for line in lines(tmp_path) if "val/miou" in line]
    assert [line["step"] for line in validations] == [2, 4]
    assert best["metric"]["value"] == max(line["val/miou"] for line in validations)
    assert best["report"]["miou"] == best["metric"]["value"]
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line] == [2, 4]


def test_only_a_better_score_replaces_the_best_weights(build, monkeypatch):
    trainer = build(trainer={"max_steps": 3, "eval_every": 1})
    saved, scores = [], iter([0.5, 0.4, 0.6])
    score = trainer.validator.score

    def pretend(model, **given):
        report = score(model, **given)
        object.__setattr__(report.scores, "miou", next(scores))
        return report

    monkeypatch.setattr(trainer.validator, "score", pretend)
    trainer.save_model = lambda model, state, name, report: saved.append((name, state.step, report.scores.miou))
    trainer.fit()
    assert saved == [("best", 1, 0.5), ("best", 3, 0.6), ("last", 3, 0.6)]


def test_the_averaged_weights_are_scored_and_saved(build, tmp_path):
    trainer = build(trainer={"max_steps": 4, "ema_decay": 0.9})
    trainer.fit()
    last = load_model(tmp_path / "runs" / "tiny" / "last").model
    assert last.head.weight.equal(trainer.ema.module.head.weight)
    assert not last.head.weight.equal(trainer.model.head.weight)


def test_the_rehearsal_leaves_no_trace(build):
    trainer = build()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    steps = list(zip(range(2), trainer.train_batches(0), strict=False))
    rehearsed = trainer.rehearsed(step for _, step in steps)
    assert [batch.ids.tolist() for step in rehearsed for batch in step] == [
        batch.ids.tolist() for _, step in steps for batch in step
    ]
    for name, value in trainer.model.state_dict().items():
        assert value.equal(before[name]), name
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def spoil(trainer, *steps):
    """Make the loss of these steps (counted from 0) NaN, as an overflow would."""
    forward = trainer.step.model_with_loss.loss.forward
    trainer.step.model_with_loss.loss.forward = lambda *given: (
        forward(*given) * (math.nan if trainer.state.step in steps else 1)
    )


def test_a_step_that_is_not_finite_is_skipped_and_its_samples_are_logged(build, tmp_path, capsys):
    trainer = build(trainer={"max_steps": 6, "log_every": 3, "eval_every": 6})
    spoil(trainer, 2)
    states = []
    train_step = trainer.train_step

    def watch(micro_batches):
        norm = train_step(micro_batches)
        trainer.settle()
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return norm

    trainer.train_step = watch
    assert trainer.fit()
    assert not {name for name, value in states[2].items() if not value.equal(states[1][name])} - {
        name for name in states[2] if name.endswith("num_batches_tracked")
    }
    assert not states[3]["head.weight"].equal(states[2]["head.weight"])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:"))
    assert re.search("step 3: its loss is not finite", line)
    assert line.count(f"{tmp_path / 'train'}/00000") == line.count(".tar/pictures/") == trainer.global_batch_size
    logged = {line["step"]: line for line in lines(tmp_path) if "train/loss" in line}
    assert {step: line["train/bad_steps"] for step, line in logged.items()} == {3: 1, 6: 1}
    assert all(math.isfinite(line["train/loss"]) for line in logged.values())
    assert trainer.state.bad_steps == 1


def test_too_many_skipped_steps_in_a_row_end_the_run(build, tmp_path):
    trainer = build(trainer={"max_steps": 8, "log_every": 4, "max_bad_steps": 2, "eval_every": 2})
    spoil(trainer, 0, 2, 3, 5, 6, 7)
    with pytest.raises(
        TrainingError,
        match=r"3 steps in a row up to step 8, .*trainer.max_bad_steps is 2; .*checkpoints are kept.* --name",
    ):
        trainer.fit()
    latest = (tmp_path / "runs" / "tiny" / "checkpoints" / "latest").read_text()
    assert latest == "step_00000006"


def test_weights_that_are_not_finite_are_not_saved(build, tmp_path):
    """They may become so between two log lines; before the next, all checkpoints would hold them."""
    trainer = build(
        trainer={"max_steps": 8, "log_every": 8, "eval_every": 8}, checkpoint={"save_every": 1, "keep_last": 1}
    )
    train_step = trainer.train_step

    def spoil(micro_batches):
        norm = train_step(micro_batches)
        if trainer.state.step == 2:
            with torch.no_grad():
                trainer.model.head.weight.fill_(math.inf)
        return norm

    trainer.train_step = spoil
    with pytest.raises(TrainingError, match=r"head.weight is not finite at step 3; .* are kept"):
        trainer.fit()
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "latest").read_text() == "step_00000002"


def signal_in_step(trainer, number):
    """The process receives SIGTERM while it makes this step."""
    train_step = trainer.train_step

    def step(micro_batches):
        if trainer.state.step + 1 == number:
            trainer.stop.received = 15
        return train_step(micro_batches)

    trainer.train_step = step


@pytest.mark.parametrize(("eval_every", "stopped_at"), [(100, 10), (7, 7)])
def test_a_signal_stops_the_run_within_ten_steps(build, tmp_path, eval_every, stopped_at):
    trainer = build(trainer={"max_steps": 40, "log_every": 40, "eval_every": eval_every})
    signal_in_step(trainer, 2)
    assert not trainer.fit()
    assert trainer.state.step == stopped_at
    assert read_status(tmp_path / "runs" / "tiny") == Status(state="stopped", step=stopped_at, attempts=1)


def test_a_signal_before_the_first_step_leaves_a_checkpoint_to_continue_from(build, tmp_path):
    trainer = build(checkpoint={"save_every": 1})
    trainer.stop.received = 15
    assert not trainer.fit()
    assert read_status(tmp_path / "runs" / "tiny") == Status(state="stopped", step=0, attempts=1)
    assert build(checkpoint={"save_every": 1}).fit()
    assert [line["step"] for line in lines(tmp_path) if "train/loss" in line] == [2, 4]


def test_a_run_whose_launcher_ended_counts_as_failed(build, tmp_path, monkeypatch):
    """Whatever restarts it can tell it from a stop."""
    trainer = build(trainer={"max_steps": 40})
    trainer.stop.received = 15
    monkeypatch.setattr(type(trainer.stop), "is_orphan", True)
    assert not trainer.fit()
    status = read_status(tmp_path / "runs" / "tiny")
    assert (status.state, status.is_final) == ("failed", False)
    assert "launcher ended" in status.reason


@pytest.mark.parametrize("interrupted", [2, 4])
def test_an_interrupted_validation_is_repeated_when_the_run_continues(build, tmp_path, interrupted):
    sections = {"trainer": {"max_steps": 4, "eval_every": 2}}
    trainer = build(**sections)
    score = trainer.validator.score

    def interrupt(model, is_over):
        if trainer.state.step == interrupted:
            trainer.stop.received = 15
        return score(model, is_over=is_over)

    trainer.validator.score = interrupt
    assert not trainer.fit()
    assert trainer.state.step == interrupted
    assert [line["step"] for line in lines(tmp_path) if "val/miou" in line] == [2, 4][: interrupted // 2 - 1]
    assert not (tmp_path / "runs" / "tiny" / "last").exists()

    continued = build(**sections)
    assert continued.fit()
    assert [line["step"] for line in lines(tmp_path) if "val/miou" in line] == [2, 4]
    last = load_model(tmp_path / "runs" / "tiny" / "last").config
    assert last["metric"]["value"] == [line["val/miou"] for line in lines(tmp_path) if "val/miou" in line][-1]
    again = build(**sections)
    again.validator.score = None  # no validation is due any more
    assert again.fit()


def test_a_run_killed_in_its_last_checkpoint_has_its_last_weights(build, tmp_path, monkeypatch):
    """Continued from a checkpoint of the last step, nothing would be left to do and nothing would write them."""
    trainer = build(trainer={"eval_every": 4})
    monkeypatch.setattr(trainer.checkpoints, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert load_model(tmp_path / "runs" / "tiny" / "last").config["step"] == 4


def test_a_large_seed_trains(build):
    assert build(seed=2**62).fit()


@pytest.fixture
def threads():
    """The number of threads of the test's process, which the test may change."""
    number = torch.get_num_threads()
    yield number
    torch.set_num_threads(number)


def test_a_run_continues_with_the_threads_that_it_began_with(build, threads, capsys):
    torch.set_num_threads(threads + 1)
    trainer = build()
    trainer.stop.received = 15
    trainer.fit()
    torch.set_num_threads(threads)
    assert build().fixed == {"micro_batch_size": 4, "num_threads": threads + 1}
    assert torch.get_num_threads() == threads + 1
    assert f"{threads + 1} threads per process, as when the run began" in capsys.readouterr().err


@pytest.mark.parametrize("order", [list, reversed])
def test_the_statistics_of_network_and_average_are_told_apart_in_any_order(build, order):
    trainer = build(trainer={"max_steps": 3, "ema_decay": 0.9})
    trainer.fit()
    tensors, facts = trainer.run_state.pack()
    assert not tensors["statistics.0"].equal(tensors["statistics.1"])
    trainer.run_state.unpack(dict(order(tensors.items())), facts, source="")
    trainer.settle()
    again, _ = trainer.run_state.pack()
    assert [name for name in tensors if not again[name].equal(tensors[name])] == []


def test_a_finished_run_stays_unchanged(build, tmp_path):
    build().fit()
    before = lines(tmp_path)
    assert build().fit()
    assert lines(tmp_path) == before


def test_a_checkpoint_of_another_model_says_so(build, tmp_path):
    build().fit()
    state = tmp_path / "runs" / "tiny" / "config.yaml"
    state.unlink()  # otherwise the settings are refused before the weights are read
    with pytest.raises(CheckpointError, match="made by another model .* --name"):
        build(model={"widths": [4, 8, 16]}).fit()


def test_a_run_is_not_continued_on_other_shards(build, tmp_path):
    """The manifest decides, not the path."""
    build().fit()
    (tmp_path / "train").rename(tmp_path / "moved")
    assert build(data={"train": str(tmp_path / "moved")}).fit()
    write_shards(tmp_path / "train", 8)
    with pytest.raises(CheckpointError, match="other shards .*data.train"):
        build().fit()
