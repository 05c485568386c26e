"""Training does not depend on the number of processes: the promise of the project, held to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

STEPS = 20


def train(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Train a run with the real loop; all that a checkpoint holds, as this rank has it."""
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
        return {name: value.detach().clone() for name, value in trainer.run_state.pack()[0].items()}


def values_of(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    augment = {"crop_size": [16, 24], "scale_min": 0.7, "scale_max": 1.4, "flip_horizontal": 0.5}
    usual: dict[str, dict[str, Any]] = {
        "augment": {**augment, "cutmix": 0.3, "classmix": 0.3, "native_epochs": 2},
        "model": {"widths": [4, 8, 8], "norm": "batch", "dropout": 0.1},
        "loss": {"class_weights": "median_frequency", "dice_weight": 0.5},
        "optim": {"lr": 0.01, "clip_norm": 1.0, "warmup_steps": 3, "layer_decay": 0.9},
        "trainer": {"global_batch_size": 8, "micro_batch_size": 2, "max_steps": STEPS, "ema_decay": 0.9},
    }
    merged = {section: values | sections.get(section, {}) for section, values in usual.items()}
    return settings_of(folder / "train", None, folder / "runs" / name, **merged)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder of the data, and what one process trains, which accumulates 4 micro-batches."""
    folder = tmp_path_factory.mktemp("equivalence")
    write_shards(folder / "train", 27, sizes=((24, 32), (30, 20)))
    state = run_ranks(train, 1, values_of(folder, "w1"))[0]
    assert difference(weights(state, "model."), weights(state, "ema.")) > 1e-3, "the weights have not moved"
    return folder, state


def weights(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_state_after_20_steps_has_the_same_bits_on_any_number_of_processes(reference, world_size):
    folder, expected = reference
    for state in run_ranks(train, world_size, values_of(folder, f"again{world_size}")):
        assert differing(expected, state) == []


def test_a_run_that_was_stopped_continues_on_other_processes_with_the_same_bits(reference):
    folder, expected = reference
    values = values_of(folder, "stopped")
    assert run_ranks(stop_half_way, 2, values) == [8, 8]
    for state in run_ranks(train, 4, values):
        assert differing(expected, state) == []


def stop_half_way(values: dict[str, Any]) -> int:
    """Ask rank 1 alone to stop at step 7; all ranks stop together when they agree next."""
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        step = trainer.train_step

        def step_and_stop(micro_batches):
            if trainer.state.step == 7 and trainer.world.rank == 1:
                trainer.stop.received = 15
            return step(micro_batches)

        trainer.train_step = step_and_stop
        assert trainer.fit() is False
        return trainer.state.step


def test_without_batch_norm_and_dropout_the_micro_batch_only_changes_the_rounding(reference):
    folder, _ = reference
    sections = {"model": {"norm": "group", "dropout": 0.0}}
    results = []
    for world_size, micro_batch_size in ((1, 8), (2, 2)):
        sections["trainer"] = {"micro_batch_size": micro_batch_size}
        values = values_of(folder, f"samples{micro_batch_size}", **sections)
        results.append(weights(run_ranks(train_in_float64, world_size, values)[0], "model."))
    assert 0 < difference(*results) <= 1e-12


def train_in_float64(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.set_default_dtype(torch.float64)
    return train(values)


def score(values: dict[str, Any]) -> dict[str, Any]:
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        return trainer.validator.score(trainer.model.eval()).to_mapping()


def test_the_score_is_equal_integer_by_integer_on_any_number_of_processes_and_batch_size(tmp_path):
    write_shards(tmp_path / "train", 8)
    write_shards(tmp_path / "val", 11, sizes=((24, 32), (24, 32), (17, 23)))
    reports = []
    for world_size, batch_size in ((1, 1), (2, 4), (3, 2)):
        values = settings_of(
            tmp_path / "train",
            tmp_path / "val",
            tmp_path / f"runs{world_size}",
            validation={"batch_size": batch_size},
            trainer={"global_batch_size": 6},
        )
        results = run_ranks(score, world_size, values)
        assert all(result == results[0] for result in results)
        reports.append(results[0])
    for report in reports[1:]:
        assert report["confusion"] == reports[0]["confusion"]
        assert report["miou_interval_95"] == reports[0]["miou_interval_95"]
        assert np.isclose(report["loss"], reports[0]["loss"], rtol=1e-12)
    assert reports[0]["num_samples"] == 11
