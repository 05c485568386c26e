"""One optimizer step; that it does not depend on processes is shown in tests/distributed/test_equivalence.py."""

import pytest
import torch

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.train.build import build_trainer
from unetdist.train.config import Config


def make(tmp_path, **sections):
    write_shards(tmp_path / "train", 9)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs", **sections)
    return build_trainer(settings.from_mapping(Config, values))


@pytest.fixture
def build(tmp_path):
    trainers = []

    def build(**sections):
        trainers.append(make(tmp_path, **sections))
        return trainers[-1]

    yield build
    for trainer in reversed(trainers):
        trainer.__exit__()


def test_clipping_limits_the_gradient_and_reports_its_norm_before(build):
    trainer = build(
        optim={"clip_norm": 1e-3, "kind": "sgd", "lr": 1.0, "momentum": 0, "schedule": "constant"}
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    norm = trainer.train_step(next(iter(trainer.train_batches(0))))
    after = [parameter.detach() for parameter in trainer.model.parameters()]
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert norm > 1e-2
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_schedule_keeps_the_rate_of_each_level(build):
    trainer = build(
        model={"widths": [4, 8]}, optim={"lr": 0.1, "layer_decay": 0.5, "schedule": "poly", "poly_power": 1.0}
    )
    for step in (0, trainer.schedule.max_steps // 2):
        trainer.step.set_lr(step)
        lr = 0.1 * (1 - step / trainer.schedule.max_steps)
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        assert rates == pytest.approx([lr * 0.5**level for level in range(4) for _ in range(2)])


def test_dropout_is_the_same_when_a_step_is_repeated(build):
    trainer = build(model={"widths": [4, 8], "dropout": 0.5})
    step = next(iter(trainer.train_batches(0)))
    losses = []
    for _ in range(2):
        trainer.wrapped.train()
        trainer.step.seed_dropout(3)
        losses.append(
            float(trainer.wrapped(step[0].image, step[0].mask, trainer.step.global_units(step)).detach())
        )
        torch.rand(3)
    assert losses[0] == losses[1]


def average(tmp_path):
    rank = torch.distributed.get_rank()
    with make(tmp_path / str(rank), trainer={"ema_decay": 0.5}) as trainer:
        models = (trainer.model, trainer.ema.module)
        for model in models:
            for name, buffer in model.named_buffers():
                if "running_" in name:
                    buffer.fill_(1.0 + 2 * rank)
        mean = trainer.model.mean.clone()
        trainer.step.average_statistics()
        assert trainer.model.mean.equal(mean)
        return [
            set(buffer.unique().tolist())
            for model in models
            for name, buffer in model.named_buffers()
            if "running_" in name
        ]


def test_running_statistics_are_averaged_over_ranks(tmp_path):
    for rank in run_ranks(average, 2, tmp_path):
        assert len(rank) > 4
        assert all(values == {2.0} for values in rank)
