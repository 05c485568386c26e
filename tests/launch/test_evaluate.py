"""launch/evaluate.py as a user types it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.synthetic import settings_of, write_shards
from unetdist import settings
from unetdist.build import build_trainer
from unetdist.config import Config
from unetdist.errors import ConfigError

SCRIPT = Path(__file__).parents[2] / "launch" / "evaluate.py"

spec = importlib.util.spec_from_file_location("launch_evaluate", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_a_file_that_cannot_be_written_is_named_after_the_score(tmp_path, monkeypatch):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 2)
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    (tmp_path / "taken").write_text("a file where the folder should be")
    options = {"--model": tmp_path / "runs/tiny/best", "--data": tmp_path / "val", "--num-workers": 0}
    options["--json"] = tmp_path / "taken" / "metrics.json"
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", *(str(word) for pair in options.items() for word in pair)]
    )
    with pytest.raises(
        ConfigError, match=r"--json \(.+metrics.json\) cannot be written \(.+\); give another"
    ):
        script.main()
