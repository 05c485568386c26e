"""A run that is killed and continued, as the dashboards have it: read back from their own files."""

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


def train(folder, *, kill_after=None):
    hidden = ("WANDB_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"HOME": str(folder), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "launch/train.py"), "--config", str(folder / "settings.yaml")]
    process = subprocess.Popen(
        words, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
