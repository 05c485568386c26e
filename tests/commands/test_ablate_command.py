"""`unetdist ablate` as a user types it."""

import json

import pytest

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.commands.ablate import command as script
from unetdist.errors import ConfigError
from unetdist.storage.files import write_text


@pytest.fixture
def file(tmp_path):
    for name, count in (("train", 8), ("val", 3)):
        write_shards(tmp_path / name, count)
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    write_text(tmp_path / "base.yaml", settings.to_yaml(values))
    text = f"base: {tmp_path / 'base.yaml'}\nseeds: [0]\nvariants: {{plain: , group: {{model.norm: group}}}}\n"
    write_text(tmp_path / "tried.yaml", text)
    return tmp_path / "tried.yaml"


def test_variants_are_trained_once_and_compared(file, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [str(file), "--parallel", "2", "--trainer.max_steps", "2"]
    assert script.main(words) == 0
    folder = file.parent / "runs" / "tried"
    results = json.loads((folder / "results.json").read_text())
    assert [(one["variant"], list(one["miou"])) for one in results["variants"]] == [("plain", ["0"]), ("group", ["0"])]
    assert results["variants"][1]["changes"] == {"model.norm": "group"}
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/last/model.safetensors")}
    assert len(before) == 2
    capsys.readouterr()

    assert script.main(words) == 0
    assert "2 runs, 0 of them to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_cannot_be_trained_ends_with_1(file, capsys):
    write_text(file, file.read_text() + "command: 'false'\n")
    assert script.main([str(file)]) == 1
    assert "plain_0 failed: exit code 1; " in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_the_number_of_runs_at_a_time_must_be_one(file, count):
    with pytest.raises(ConfigError, match=f"--parallel: invalid count: '{count}'; use a whole number over 0"):
        script.main([str(file), "--parallel", count])
