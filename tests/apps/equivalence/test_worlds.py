"""Runs as processes: what is launched, how their steps are told, and what is said of one that fails."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.apps.equivalence.runs import values_of
from unetdist.apps.equivalence import worlds
from unetdist.apps.equivalence.worlds import (
    ComparedRun,
    ComparisonPlan,
    processes,
    runs_of,
    train,
    train_all,
    trained_config,
)
from unetdist.cli import settings
from unetdist.errors import TrainingError
from unetdist.train.config import Config

ROOT = Path(__file__).parents[3]

FAKE = """
import json, sys, time
from pathlib import Path
task = json.loads(Path(sys.argv[1]).read_text())
run = Path(task["settings"]["runs_dir"]) / task["settings"]["name"]
run.mkdir(parents=True)
with open(task["record"], "w") as record, open(run / "metrics.jsonl", "w") as metrics:
    for step in range(task["steps"] + 1):
        record.write(json.dumps({"step": step, "samples": [], "ranks_agree": True, "differences": {}}) + "\\n")
        metrics.write(json.dumps({"step": step, "train/loss": 1.0 / (1 + step)}) + "\\n")
"""


@pytest.fixture
def plan(tmp_path):
    config = settings.from_mapping(Config, values_of(tmp_path, tracking={"tracker": "wandb"}))
    work = tmp_path / "work"
    work.mkdir()
    return ComparisonPlan(
        config=trained_config(config, float64=False),
        steps=3,
        float64=False,
        on_gpu=False,
        script=ROOT / "launch" / "equivalence.py",
        work=work,
    )


@pytest.fixture
def launched(monkeypatch):
    """Programs that are run in place of the launches, and the command lines that those would have had."""
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def start(code: str) -> list[list[str]]:
        def launch(words, *, env, stdout, stderr):
            commands.append([*words, f"CUDA_VISIBLE_DEVICES={env.get('CUDA_VISIBLE_DEVICES')}"])
            return popen([sys.executable, "-c", code, words[-1]], stdout=stdout, stderr=stderr)

        monkeypatch.setattr(worlds.subprocess, "Popen", launch)
        return commands

    return start


def test_the_first_world_is_repeated_and_nudged():
    runs = runs_of((2, 1, 4))
    assert [run.label for run in runs] == ["2 reference", "2 again", "2 nudged", "1", "4"]
    assert [run.world_size for run in runs] == [2, 2, 2, 1, 4]
    assert [run.title for run in runs[:4]] == ["2 processes", "2 processes again", "2 processes nudged", "1 process"]
    assert processes(3) == "3 processes"


def test_each_run_is_a_launch_on_the_cpu_with_the_file_for_its_size(plan, launched):
    commands = launched(FAKE)
    train_all(runs_of((1, 2)), plan)
    files = [Path(words[words.index("--config_file") + 1]) for words in commands]
    assert all(file.is_file() for file in files)
    assert [file.name for file in files] == [*["one_gpu.yaml"] * 3, "cpu.yaml"]
    assert [words[words.index("--num_processes") + 1] for words in commands] == ["1", "1", "1", "2"]
    assert {words[-1] for words in commands} == {"CUDA_VISIBLE_DEVICES="}


def test_gpus_are_seen_where_there_are_enough(plan, launched, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    commands = launched(FAKE)
    train(ComparedRun(4), replace(plan, on_gpu=True))
    assert Path(commands[0][commands[0].index("--config_file") + 1]).name == "one_node.yaml"
    assert commands[0][-1] == "CUDA_VISIBLE_DEVICES=None"
    monkeypatch.setattr(worlds.torch.cuda, "device_count", lambda: 2)
    assert worlds.has_gpus((1, 2))
    assert not worlds.has_gpus((1, 2, 4))


def test_a_record_has_the_loss_of_each_step(plan, launched):
    launched(FAKE)
    record = train(ComparedRun(2), plan)
    assert [line["step"] for line in record] == [0, 1, 2, 3]
    assert [line["train/loss"] for line in record[1:]] == [1 / 2, 1 / 3, 1 / 4]


def test_runs_have_the_settings_of_the_user_but_no_dashboard(plan, tmp_path):
    config = settings.from_mapping(Config, values_of(tmp_path, tracking={"tracker": "wandb"}))
    trained = trained_config(config, float64=False)
    differences = settings.differences(settings.to_mapping(config), settings.to_mapping(trained))
    assert set(differences) == {"tracking.tracker"}
    bf16 = replace(config, trainer=replace(config.trainer, mixed_precision="bf16"))
    assert trained_config(bf16, float64=False).trainer.mixed_precision == "bf16"
    assert trained_config(bf16, float64=True).trainer.mixed_precision == "no"


def test_runs_write_nothing_outside_their_folder(plan, launched):
    launched(FAKE)
    train(ComparedRun(1), plan)
    assert (plan.work / "runs" / "1" / "metrics.jsonl").is_file()
    assert not Path(plan.config.runs_dir).exists()


def test_a_run_that_fails_says_what_its_processes_said_to_the_user(plan, launched):
    launched(
        "import sys; print('[rank 1] error: no shards here; write them.\\nTraceback: noise'); "
        "print('[rank 1] error: no shards here; write them.'); sys.exit(1)"
    )
    with pytest.raises(TrainingError) as error:
        train(ComparedRun(2, "nudged"), plan)
    text = "the run on 2 processes nudged ended with exit code 1:\n[rank 1] error: no shards here; write them."
    assert str(error.value) == text


def test_a_run_that_fails_otherwise_shows_the_end_of_its_output(plan, launched):
    launched("print(*range(100), sep='\\n'); raise MemoryError('no room')")
    with pytest.raises(TrainingError, match=r"(?s)exit code 1:\n.*\n99\n.*MemoryError: no room$") as error:
        train(ComparedRun(1), plan)
    assert "\n50\n" not in str(error.value)


def test_a_run_does_not_outlive_the_command(plan, launched, monkeypatch):
    launched("import time; time.sleep(600)")
    popen, started = worlds.subprocess.Popen, []

    def interrupt():
        del started[0].wait
        raise KeyboardInterrupt

    def keep(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        started[0].wait = interrupt
        return started[0]

    monkeypatch.setattr(worlds.subprocess, "Popen", keep)
    with pytest.raises(KeyboardInterrupt):
        train(ComparedRun(1), plan)
    assert started[0].returncode is not None
