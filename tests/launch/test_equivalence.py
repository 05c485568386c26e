"""launch/equivalence.py as a user types it; its runs are told, not trained."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.apps.equivalence.runs import values_of, write_data
from tests.apps.equivalence.test_compare import line
from unetdist.cli import settings
from unetdist.errors import ConfigError, DataError
from unetdist.storage.files import write_text

SCRIPT = Path(__file__).parents[2] / "launch" / "equivalence.py"

spec = importlib.util.spec_from_file_location("launch_equivalence", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def config(tmp_path):
    write_data(tmp_path)
    write_text(tmp_path / "config.yaml", settings.to_yaml(values_of(tmp_path)))
    return ["--config", str(tmp_path / "config.yaml")]


@pytest.fixture
def trained(monkeypatch):
    """Plans whose runs were trained: all equal, but that of 4 processes."""
    plans = []

    def train_all(runs, plan):
        plans.append((runs, plan))
        equal = [line(step) for step in range(plan.steps + 1)]
        wrong = [line(step, differences={"head.bias": 0.5}) for step in range(plan.steps + 1)]
        return [wrong if run.world_size == 4 else equal for run in runs]

    monkeypatch.setattr(script, "train_all", train_all)
    return plans


def test_equal_worlds_end_with_0(config, trained, capsys):
    assert script.main([*config, "--world", "1,2"]) == 0
    output = capsys.readouterr().out
    assert "tiny: 10 steps in float32 on the CPU, compared with 1 process" in output
    assert "As promised" in output
    [(runs, plan)] = trained
    assert [run.label for run in runs] == ["1 reference", "1 again", "1 nudged", "2"]
    assert plan.steps == 10  # of the 20 that were asked for: the whole training
    assert not plan.work.exists()


def test_a_broken_promise_ends_with_1(config, trained, capsys):
    assert script.main([*config, "--world", "1,2,4", "--steps", "3", "--float64"]) == 1
    output = capsys.readouterr().out
    assert "3 steps in float64" in output
    assert "The promise is broken" in output
    assert "head.bias" in output


def test_what_is_not_promised_ends_with_0(config, trained, capsys):
    assert script.main([*config, "--world", "1,4", "--model.norm", "batch"]) == 0
    assert "Equal weights are not promised" in capsys.readouterr().out


def test_double_precision_leaves_mixed_precision_out(config, trained, capsys):
    words = [*config, "--world", "1,4", "--trainer.mixed_precision", "bf16"]
    assert script.main(words) == 0
    assert script.main([*words, "--float64"]) == 1


def test_what_a_run_would_refuse_is_refused_before_any_is_started(config, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"global_batch_size \(8\) must be divisible by the processes \(3\)"):
        script.main([*config, "--world", "1,3"])
    with pytest.raises(ConfigError, match=r"unknown option '--model.nrom'; did you mean 'model.norm'"):
        script.main([*config, "--model.nrom", "group"])
    with pytest.raises(DataError, match=r"no manifest.json here"):
        script.main([*config, "--data.train", str(tmp_path / "absent")])
    assert trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "1,1"], "invalid numbers of processes: '1,1'; use 1,2,4"),
        (["--world", "0,2"], "invalid numbers of processes: '0,2'; use 1,2,4"),
        (["--world", "two"], "invalid numbers of processes: 'two'; use 1,2,4"),
        (["--steps", "0"], "invalid count: '0'; use a whole number over 0"),
    ],
)
def test_words_that_are_not_understood(words, message, capsys):
    with pytest.raises(SystemExit):
        script.main(["--config", "any.yaml", *words])
    assert message in capsys.readouterr().err


def test_a_process_of_a_run_trains_its_task(config, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(script.record, "run", told.append)
    flags = {"float64": False, "is_nudged": False, "is_reference": True}
    task = {"settings": {}, "steps": 1, "record": "r", "weights": "w", **flags}
    write_text(tmp_path / "task.json", json.dumps(task))
    assert script.main(["--task", str(tmp_path / "task.json")]) == 0
    assert told == [script.record.RecordTask(**task)]
