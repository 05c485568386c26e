"""Every YAML in configs/ is complete, and trains."""

from pathlib import Path

import pytest

from tests.synthetic import write_shards
from unetdist.apps.ablation.plan import read_plan
from unetdist.cli import settings
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

FILES = sorted(Path("configs").glob("*.yaml"))
SMALL = ["--trainer.global_batch_size", "2", "--augment.crop_size", "[32,32]", "--data.num_workers", "0",
         "--tracking.tracker", "none", "--optim.warmup_steps", "0", "--trainer.mixed_precision", "no",
         "--trainer.max_steps", "2", "--trainer.eval_every", "1"]  # fmt: skip


@pytest.mark.parametrize("file", sorted(Path("configs/ablations").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_ablation_can_be_planned(file, tmp_path):
    plan = read_plan(file, ["--runs_dir", str(tmp_path)])
    assert len(plan.runs) == 3 * len(plan.variants) > 30


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_trains_two_steps(file, tmp_path):
    write_shards(tmp_path / "train", 5)
    write_shards(tmp_path / "val", 2)
    paths = {"data.train": tmp_path / "train", "data.val": tmp_path / "val", "runs_dir": tmp_path / "runs"}
    argv = [
        "--config",
        str(file),
        *SMALL,
        *(word for key, path in paths.items() for word in (f"--{key}", str(path))),
    ]
    config = settings.parse(Config, argv, prog="train.py", description="")
    with build_trainer(config) as trainer:
        assert trainer.fit()
    run = tmp_path / "runs" / config.name
    assert (run / "best" / "model.safetensors").exists()
    assert (run / "last" / "model.safetensors").exists()
    assert (
        settings.parse(Config, ["--config", str(run / "config.yaml")], prog="", description="").name
        == config.name
    )
