"""Which settings promise equal weights on any number of processes."""

import re

import pytest

from tests.apps.equivalence.runs import values_of, write_data
from unetdist.apps.equivalence.worlds import broken_by, check_worlds
from unetdist.cli import settings
from unetdist.errors import ConfigError, DataError
from unetdist.train.config import Config


def config_of(folder, **sections) -> Config:
    return settings.from_mapping(Config, values_of(folder, **sections))


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"norm": "group"}},
        {"model": {"norm": "instance"}},
        {"model": {"norm": "none"}},
        {"model": {"norm": "sync_batch"}},
        {"trainer": {"micro_batch_size": 1, "ema_decay": 0.9}},
        {"loss": {"dice_weight": 1.0, "lovasz_weight": 1.0, "class_weights": "median_frequency"}},
        {"optim": {"kind": "sgd", "clip_norm": 1.0}},
    ],
    ids=str,
)
def test_these_promise_equal_weights(tmp_path, sections):
    assert broken_by(config_of(tmp_path, **sections), (1, 2, 4)) == []


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"norm": "batch"}}, r"model.norm \(batch\)"),
        (
            {"model": {"norm": "sync_batch"}, "trainer": {"micro_batch_size": 2}},
            r"model.norm \(sync_batch\) .+micro_batch_size \(2\)",
        ),
        ({"model": {"encoder": "resnet34"}}, r"model.encoder \(resnet34\)"),
        ({"model": {"dropout": 0.1}}, r"model.dropout \(0.1\)"),
        ({"model": {"drop_path": 0.1, "residual": True}}, r"model.drop_path \(0.1\)"),
        ({"trainer": {"mixed_precision": "bf16"}}, r"trainer.mixed_precision \(bf16\).*--float64"),
    ],
    ids=["batch", "sync_batch", "encoder", "dropout", "drop_path", "bf16"],
)
def test_these_do_not_and_say_why(tmp_path, sections, reason):
    [found] = broken_by(config_of(tmp_path, **sections), (1, 2))
    assert re.match(reason, found)
    assert broken_by(config_of(tmp_path, **sections), (2, 2)) == []


def test_all_reasons_are_told_at_once(tmp_path):
    config = config_of(tmp_path, model={"norm": "batch", "dropout": 0.5})
    assert len(broken_by(config, (1, 2))) == 2


def test_worlds_are_checked_before_anything_is_started(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json here"):
        check_worlds(config_of(tmp_path), (1, 2), device_type="cpu")
    write_data(tmp_path)
    assert check_worlds(config_of(tmp_path), (1, 2, 4), device_type="cpu") == 10
    with pytest.raises(ConfigError, match=r"global_batch_size \(8\) must be divisible by the processes \(3\)"):
        check_worlds(config_of(tmp_path), (1, 3), device_type="cpu")
    sync_batch = config_of(tmp_path, model={"norm": "sync_batch"})
    with pytest.raises(ConfigError, match=r"sync_batch\) must have a GPU for each of the 2 processes"):
        check_worlds(sync_batch, (1, 2), device_type="cpu")
    check_worlds(sync_batch, (1, 2), device_type="cuda")
