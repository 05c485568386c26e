"""The compiled path for real: Inductor, here for the CPU, where a run would never choose it."""

import json

import pytest
import torch

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.train import build as wiring
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.performance import PLAIN, FastPath

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]  # the compiler warns of itself


def test_inductor_gives_the_losses_of_the_plain_path(tmp_path, monkeypatch):
    write_shards(tmp_path / "train", 9, size=(40, 48))
    write_shards(tmp_path / "val", 2, size=(40, 48))
    sections = {
        "augment": {"crop_size": [32, 32], "scale_min": 0.7, "scale_max": 1.5, "hue": 0.1},
        "model": {"widths": [8, 16, 32], "deep_supervision": True},
        "loss": {"dice_weight": 0.5, "class_weights": "median_frequency"},
        "optim": {"clip_norm": 1.0},
        "trainer": {"log_every": 1, "max_steps": 8, "ema_decay": 0.9},
    }
    losses = {}
    for name, path in (("plain", PLAIN), ("fast", FastPath(compiler="inductor"))):
        monkeypatch.setattr(wiring, "choose", lambda *_, path=path, **__: path)
        values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs", **sections, name=name)
        with build_trainer(settings.from_mapping(Config, values)) as trainer:
            assert trainer.fit()
            assert trainer.step.model_with_loss.is_compiled == (path is not PLAIN)
        records = map(json.loads, (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines())
        losses[name] = torch.tensor([each["train/loss"] for each in records if "train/loss" in each])
    assert len(losses["plain"]) == 8
    torch.testing.assert_close(losses["fast"], losses["plain"], rtol=1e-4, atol=1e-4)
