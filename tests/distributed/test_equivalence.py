"""Training does not depend on the number of processes: the promise of the project, held to the last digits."""

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


def train(values: dict[str, Any]) -> dict[str, Any]:
    """Train a run with the real loop, in float64; weights and losses of this rank."""
    torch.set_default_dtype(torch.float64)
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
        return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def values_of(tmp_path: Path, name: str, **trainer: Any) -> dict[str, Any]:
    return settings_of(
        tmp_path / "train",
        None,
        tmp_path / "runs" / name,
        augment={
            "crop_size": [16, 24],
            "scale_min": 0.7,
            "scale_max": 1.4,
            "flip_horizontal": 0.5,
            "cutmix": 0.3,
            "classmix": 0.3,
            "native_epochs": 2,
        },
        model={"widths": [4, 8, 8], "norm": "group"},
        loss={"class_weights": "median_frequency", "dice_weight": 0.5},
        optim={"lr": 0.01, "clip_norm": 1.0, "warmup_steps": 3, "layer_decay": 0.9},
        trainer={"global_batch_size": 8, "max_steps": STEPS, **trainer},
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder of the data, and the weights that one process without accumulation trains."""
    folder = tmp_path_factory.mktemp("equivalence")
    write_shards(folder / "train", 27, sizes=((24, 32), (30, 20)))
    return folder, run_ranks(train, 1, values_of(folder, "w1"))[0]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (2, 2), (4, 1)])
def test_weights_after_20_steps_do_not_depend_on_processes_or_accumulation(reference, world_size, accumulation):
    folder, expected = reference
    micro_batch_size = 8 // world_size // accumulation
    values = values_of(folder, f"w{world_size}a{accumulation}", micro_batch_size=micro_batch_size)
    results = run_ranks(train, world_size, values)
    assert difference(expected, results[0]) <= 1e-12
    for result in results[1:]:
        assert difference(results[0], result) == 0


def test_the_trained_weights_have_moved(reference):
    """Else the tests above could not fail."""
    folder, expected = reference
    assert difference(expected, run_ranks(begin, 1, values_of(folder, "begun"))[0]) > 1e-2


def begin(values: dict[str, Any]) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        return trainer.model.state_dict()


def test_a_run_that_was_stopped_continues_as_if_it_had_not_been(reference):
    folder, expected = reference
    stopped = run_ranks(stop_half_way, 2, values_of(folder, "stopped"))
    assert stopped == [8, 8]
    continued = run_ranks(train, 4, values_of(folder, "stopped"))
    assert difference(expected, continued[0]) <= 1e-12


def stop_half_way(values: dict[str, Any]) -> int:
    """Ask rank 1 alone to stop at step 7; all ranks stop together at the next log line."""
    torch.set_default_dtype(torch.float64)
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        step = trainer.train_step

        def step_and_stop(micro_batches):
            if trainer.state.step == 7 and trainer.world.rank == 1:
                trainer.stop.received = 15
            return step(micro_batches)

        trainer.train_step = step_and_stop
        assert trainer.fit() is False
        return trainer.state.step


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


def test_with_batch_norm_all_ranks_score_and_save_the_same_weights(reference):
    """Each rank saw other pixels; the statistics that are kept are the mean over ranks."""
    folder, _ = reference
    values = values_of(folder, "batch_norm", ema_decay=0.9)
    values["model"] = {"widths": [4, 8], "norm": "batch"}
    first, second = run_ranks(train_averaged, 2, values)
    assert difference(first, second) == 0
    assert any("running_mean" in name for name in first)


def train_averaged(values: dict[str, Any]) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
        return {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.module.state_dict().items()}}
