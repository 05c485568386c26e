import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import pytest

from tests.synthetic import write_shards
from unetdist.cli import settings
from unetdist.commands.ablate.ablation import read_ablation
from unetdist.errors import ConfigError
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

REQUIRED = {"data": {"train": "shards"}}


def test_little_has_to_be_said():
    config = settings.from_mapping(Config, REQUIRED)
    assert (config.name, config.seed, config.model.preset) == ("run", 0, "student")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, r"name \(a/b\) becomes a folder; use letters, digits"),
        ({"name": ".."}, "becomes a folder"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0 and below 2\^63; use 0"),
        ({"seed": 2**63}, r"seed \(9223372036854775808\) must be .* below 2\^63; use 0"),
        ({"data": {}}, r"missing setting: data.train; give it in the --config file or as --data.train VALUE"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        settings.from_mapping(Config, {**REQUIRED, **values})


def sections():
    return [Config, *(field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type))]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_setting_is_explained(section):
    (definition,) = ast.parse(inspect.getsource(section)).body
    for node, after in itertools.pairwise(definition.body):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{section.__name__}.{node.target.id} has no docstring below it"


def test_help_shows_the_explanations(capsys):
    with pytest.raises(SystemExit):
        settings.parse(Config, ["--help"], prog="launch/train.py", description="Trains.")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--trainer.global_batch_size 16 Samples per optimizer step, over all processes." in shown


FILES = sorted({*Path("configs").glob("*.yaml")} - {Path("configs/sweep.yaml")})
SMALL = ["--trainer.global_batch_size", "2", "--trainer.micro_batch_size", "null", "--augment.crop_size", "[32,32]",
         "--data.num_workers", "0", "--tracking.tracker", "none", "--optim.warmup_steps", "0",
         "--trainer.mixed_precision", "no",
         "--trainer.max_steps", "2", "--trainer.eval_every", "1"]  # fmt: skip


@pytest.mark.parametrize("file", sorted(Path("configs/ablations").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_ablation_can_be_planned(file, tmp_path):
    ablation = read_ablation(file, ["--runs_dir", str(tmp_path)])
    assert len(ablation.runs) == 3 * len({run.variant for run in ablation.runs}) > 30


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_trains_two_steps(file, tmp_path):
    write_shards(tmp_path / "train", 5)
    write_shards(tmp_path / "val", 2)
    paths = {"data.train": tmp_path / "train", "data.val": tmp_path / "val", "runs_dir": tmp_path / "runs"}
    argv = ["--config", str(file), *SMALL, *(word for key, path in paths.items() for word in (f"--{key}", str(path)))]
    config = settings.parse(Config, argv, prog="train.py", description="")
    with build_trainer(config) as trainer:
        assert trainer.fit()
    run = tmp_path / "runs" / config.name
    assert (run / "best" / "model.safetensors").exists()
    assert (run / "last" / "model.safetensors").exists()
    assert settings.parse(Config, ["--config", str(run / "config.yaml")], prog="", description="").name == config.name
