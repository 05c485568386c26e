"""What makes a run fast changes nothing of it, and is told where it does not work: whole runs, on the CPU."""

import json

import pytest
import torch

from tests.synthetic import settings_of, write_shards
from tests.train.test_nonfinite import leftovers_in_new_memory
from unetdist.cli import settings
from unetdist.train import build as wiring
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.performance import FastPath


@pytest.fixture
def run(tmp_path):
    """`run(name, before=..., **sections)`: a finished run of 4 steps, as its folder and weights."""
    write_shards(tmp_path / "train", 8)

    def run(name, *, before=lambda trainer: None, **sections):
        values = settings_of(tmp_path / "train", None, tmp_path / "runs", name=name, **sections)
        with build_trainer(settings.from_mapping(Config, values)) as trainer:
            before(trainer)
            assert trainer.fit()
            return tmp_path / "runs" / name, trainer.model.state_dict()

    return run


def spoil_first_step(trainer):
    """The loss of the first step is not finite; the rehearsal is not affected."""
    train_step, network = trainer.train_step, trainer.step.model_with_loss

    def step(micro_batches):
        factor = float("inf") if trainer.state.step == 0 else 1.0
        handle = network.register_forward_hook(lambda module, given, loss: loss * factor)
        try:
            return train_step(micro_batches)
        finally:
            handle.remove()

    trainer.train_step = step


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_whose_first_step_is_bad_is_the_same_with_fused_optimizers(run, monkeypatch, kind):
    weights, build_optimizer = {}, wiring.build_optimizer

    def fused(model, config):
        optimizer = build_optimizer(model, config)
        for group in optimizer.param_groups:
            group["fused"] = True
        return optimizer

    for name in ("plain", "fused"):
        if name == "fused":
            monkeypatch.setattr(wiring, "build_optimizer", fused)
        with leftovers_in_new_memory():
            folder, weights[name] = run(name, before=spoil_first_step, optim={"kind": kind, "lr": 0.01})
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        assert [line["train/bad_steps"] for line in lines] == [1, 1]
    for name, value in weights["fused"].items():
        torch.testing.assert_close(value, weights["plain"][name], rtol=1e-4, atol=1e-6)


def test_a_run_that_cannot_be_compiled_says_so_where_one_looks_and_trains_on(run, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("no kernel for this")

    _, expected = run("plain", performance="off")
    monkeypatch.setattr(wiring, "choose", lambda *_, **__: FastPath(compiler=broken))
    folder, weights = run("fast")
    assert "warning: training without the compiler, and slower: " in capsys.readouterr().err
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["performance"].partition(": ")[0]) == ("finished", "not compiled")
    assert "no kernel for this" in status["performance"]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert [line["time/is_compiled"] for line in lines] == [0, 0]
    assert all(value.equal(expected[name]) for name, value in weights.items())
