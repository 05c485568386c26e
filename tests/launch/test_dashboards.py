"""A run that is killed and continued, and a sweep, as the dashboards have them: read back from their own files."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.synthetic import settings_of, write_shards
from tests.tracking.samples import wandb_records
from unetdist.cli import settings

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")

ROOT = Path(__file__).parents[2]
MAX_STEPS, LOG_EVERY, EVAL_EVERY = 60, 3, 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run that was killed and then went on to its end; and its attempts' outputs."""
    folder = tmp_path_factory.mktemp("dashboards")
    write_shards(folder / "train", 6)
    write_shards(folder / "val", 3)
    values = settings_of(
        folder / "train",
        folder / "val",
        folder / "runs",
        tracking={"tracker": ["wandb", "tensorboard", "mlflow"], "num_pictures": 2},
    )
    values["trainer"] |= {"max_steps": MAX_STEPS, "log_every": LOG_EVERY, "eval_every": EVAL_EVERY}
    values["checkpoint"] = {"save_every": 8}
    (folder / "settings.yaml").write_text(settings.to_yaml(values))
    outputs = []
    for step in (22, None):
        outputs.append(train(folder, kill_after=step))
        (folder / f"metrics_{len(outputs)}.jsonl").write_bytes((folder / "runs/tiny/metrics.jsonl").read_bytes())
    return folder / "runs/tiny", outputs


def environment_of(folder):
    hidden = ("WANDB_", "MLFLOW_", "SLURM_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return environment | {"HOME": str(folder), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def train(folder, *, kill_after=None):
    words = [sys.executable, str(ROOT / "launch/train.py"), "--config", str(folder / "settings.yaml")]
    process = subprocess.Popen(
        words, env=environment_of(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        if kill_after is not None:
            wait_for_step(folder / "runs/tiny/metrics.jsonl", kill_after, process)
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), output
    return output


def wait_for_step(file, step, process):
    end = time.monotonic() + 120
    while not file.exists() or all(line["step"] < step for line in lines_of(file)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"step {step} did not come within 120 s"
        time.sleep(0.01)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


TRAIN_STEPS = list(range(LOG_EVERY, MAX_STEPS + 1, LOG_EVERY))
VAL_STEPS = list(range(EVAL_EVERY, MAX_STEPS + 1, EVAL_EVERY))
pytestmark = pytest.mark.slow


def test_the_run_was_killed_between_its_logs_and_went_on(runs):
    run_dir, outputs = runs
    assert "continuing at step 16 of 60" in outputs[1]
    steps = {line["step"] for line in lines_of(run_dir / "metrics.jsonl")}
    assert steps == {*TRAIN_STEPS, *VAL_STEPS}


def test_it_is_one_wandb_run_with_no_step_twice(runs):
    run_dir, _ = runs
    records = wandb_records(run_dir)
    assert {record["run"]["run_id"] for record in records if record["type"] == "run"} == {
        (run_dir / "wandb_id").read_text().strip()
    }
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    # A kill loses rows that wandb had not written to its files. After the last continuation none is missing.
    logged = {*TRAIN_STEPS, *VAL_STEPS}
    killed_at = max(line["step"] for line in lines_of(run_dir.parents[1] / "metrics_1.jsonl"))
    assert {step for step in logged if step > killed_at} <= set(steps) <= logged
    assert [row["_step"] for row in rows if "train/loss" in row] == [s for s in TRAIN_STEPS if s in steps]
    assert [row["_step"] for row in rows if "val/miou" in row] == [s for s in VAL_STEPS if s in steps]
    best = [record["artifact"] for record in records if record["type"] == "artifact"][-1]
    assert best["name"].endswith("-best")


def test_it_is_in_tensorboard_with_each_step_once(runs):
    run_dir, _ = runs
    found = Counter(
        (event.step, value.tag)
        for file in (run_dir / "tensorboard").rglob("events.out.tfevents.*")
        for event in event_files.EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if not value.tag.startswith("val/pictures") and value.tag != "val/confusion"
    )
    assert set(found.values()) == {1}
    assert sorted(step for step, name in found if name == "train/loss") == TRAIN_STEPS
    assert sorted(step for step, name in found if name == "val/miou") == VAL_STEPS


@pytest.mark.filterwarnings("ignore")
def test_it_is_one_run_in_mlflow_with_each_step_once(runs):
    run_dir, _ = runs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    for name, steps in (("train/loss", TRAIN_STEPS), ("val/miou", VAL_STEPS)):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == steps


AGENT = """
import json, sys
from wandb.wandb_agent import Agent
agent = Agent(api=None, queue=None, sweep_id="sweep1")
for trial in json.load(sys.stdin):
    agent._sweep_command = list(trial.pop("command"))
    agent._command_run(trial)
    assert agent._run_processes[trial["run_id"]].wait() == 0
"""
"""wandb's agent, told by stdin what its server would tell it."""


def run_sweep(folder, trials):
    """Start the trials one after the other as `wandb agent` does for configs/sweep.yaml; returns their outputs."""
    sweep = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    (folder / "bin").mkdir()
    command = folder / "bin" / sweep["program"]
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom unetdist.__main__ import main\nmain()\n")
    command.chmod(0o755)
    started = [
        {"command": sweep["command"], "program": sweep["program"], "run_id": run_id}
        | {"args": {name: {"value": value} for name, value in args.items()}}
        for run_id, args in trials
    ]
    environment = environment_of(folder) | {"WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "of-the-sweep"}
    environment |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", AGENT], input=json.dumps(started), env=environment, cwd=folder, timeout=280,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_each_trial_of_a_sweep_is_a_run_of_its_own_that_continues_when_it_starts_again(tmp_path):
    write_shards(tmp_path / "train", 6)
    write_shards(tmp_path / "val", 3)
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs", tracking={"tracker": "wandb"})
    (tmp_path / "my_data.yaml").write_text(settings.to_yaml(values))
    parameters = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())["parameters"]
    first = {name: choice.get("values", [choice.get("min")])[-1] for name, choice in parameters.items()}
    rates = {"a": 0.001, "b": 0.002, "c": 0.003}
    trials = [(run_id, {**first, "optim.lr": lr, "trainer.max_steps": 4.0}) for run_id, lr in rates.items()]
    output = run_sweep(tmp_path, [*trials, trials[0]])
    folders = {run_id: tmp_path / "runs" / f"sweep1-{run_id}" for run_id in rates}
    assert {*(tmp_path / "runs").iterdir()} == {*folders.values()}, output
    for run_id, lr in rates.items():
        saved = yaml.safe_load((folders[run_id] / "config.yaml").read_text())
        assert (saved["name"], saved["optim"]["lr"]) == (folders[run_id].name, lr)
        assert (folders[run_id] / "wandb_id").read_text().strip() == run_id
        assert [line["step"] for line in lines_of(folders[run_id] / "metrics.jsonl") if "val/miou" in line][-1] == 4
    records = wandb_records(tmp_path)
    runs = {record["run"]["run_id"]: record["run"] for record in records if record["type"] == "run"}
    assert {run_id: run["display_name"] for run_id, run in runs.items()} == {
        run_id: folder.name for run_id, folder in folders.items()
    }
    assert {(run["project"], run["sweep_id"]) for run in runs.values()} == {("of-the-sweep", "sweep1")}
    best = [r["summary"]["update"] for r in records if r["type"] == "summary" and "best/miou" in r["summary"]["update"]]
    assert len(best) == 3  # configs/sweep.yaml maximises it
    assert "Ignoring" not in output
