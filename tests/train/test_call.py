"""`unetdist.train`, the run from Python."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import unetdist
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.errors import ConfigError, TrainingError
from unetdist.train.run_status import read_status

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings of a run with the same bits on one process and on two."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "train", 8)
    write_shards(folder / "val", 3)
    values = settings_of(folder / "train", folder / "val", folder / "runs", model={"norm": "group"})
    return {**values, "trainer": {**values["trainer"], "micro_batch_size": 2}}


def test_trials_in_a_loop_are_runs_of_their_own(config, tmp_path, monkeypatch):
    """As in a study of Optuna: all share the settings but for what is tried."""
    for name in ("WANDB_RUN_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    rates = [0.001, 0.01]
    trials = [unetdist.train(config, runs_dir=tmp_path, name="auto", lr=lr) for lr in rates]
    assert len({*tmp_path.iterdir()}) == 2
    for trial, lr in zip(trials, rates, strict=True):
        saved = settings.read_yaml(trial.folder / "config.yaml")
        assert (saved["name"], saved["optim"]["lr"]) == (trial.folder.name, lr)
        assert trial.finished


def process_state():
    """What a training might change for the whole process."""
    return {
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "threads": threading.active_count(),
        "torch": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "log": (logger.handlers[:], logger.level, logger.propagate),
        "random": (random.random(), np.random.random(), torch.rand(1).item()),
    }


def seeded_process_state():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return process_state()


def test_two_runs_in_one_process_leave_it_as_it_was(config, tmp_path):
    before = seeded_process_state()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = []
    for precision in ("no", "bf16"):  # which Accelerate keeps for the process
        found.append(unetdist.train(config, runs_dir=tmp_path, name=precision, mixed_precision=precision))
        metrics = (found[-1].folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(metrics[-1])["step"] == 4
    wait_until(lambda: threading.active_count() == before["threads"])  # that of the signals is just ending
    assert process_state() == before
    assert [run.folder for run in found] == [tmp_path / "no", tmp_path / "bf16"]
    assert all(run.finished and run.step == 4 and 0 < run.best_miou < 1 for run in found)
    assert found[0].best_miou != found[1].best_miou
    assert f"mIoU {found[0].best_miou:.1%}" in repr(found[0].model())


def test_settings_have_the_names_and_forms_of_the_command_line(config, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(json.dumps(config))
    changes = {"runs_dir": tmp_path, "data": {"val": None}, "max_steps": np.int64(2), "optim.lr": np.float64(0.01)}
    run = unetdist.train(file, **changes, crop_size=(8, 8))
    assert (run.finished, run.step, run.best_miou) == (True, 2, None)
    assert run.model().facts["step"] == 2  # the last weights, because none are the best
    kept = (run.folder / "config.yaml").read_text()
    assert "lr: 0.01\n" in kept
    assert "crop_size:\n  - 8\n  - 8\n" in kept


def test_errors_are_raised_in_the_words_of_the_command_line(config, tmp_path):
    with pytest.raises(ConfigError, match=r"max_step.*trainer\.max_steps"):
        unetdist.train(config, max_step=3)
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        unetdist.train("absent.yaml")
    with pytest.raises(TypeError):
        unetdist.train(config, 3)
    unetdist.train(config, runs_dir=tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001, now it is 0\.5"):
        unetdist.train(config, runs_dir=tmp_path, max_steps=1, lr=0.5)


def test_a_thread_is_sent_to_a_process_of_its_own(config):
    caught = []

    def work():
        try:
            unetdist.train(config)
        except ConfigError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "processes=1" in caught[0]


def test_an_interrupt_saves_a_checkpoint_and_the_same_call_continues(config, tmp_path):
    def train(max_steps):
        return unetdist.train(
            config, runs_dir=tmp_path, max_steps=max_steps, eval_every=10**6, allow_changes=["trainer.max_steps"]
        )

    def interrupt():
        wait_until(lambda: (tmp_path / "tiny/metrics.jsonl").exists(), 60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train(10**6)
    status = read_status(tmp_path / "tiny")
    assert status.state == "stopped"
    run = train(status.step + 2)
    assert (run.finished, run.step) == (True, status.step + 2)


SCRIPT = """
import sys, torch, unetdist
torch.rand(2000, 2000) @ torch.rand(2000, 2000)  # a fork would hang from here on
print(unetdist.train("my.yaml", processes=2, name=sys.argv[1], max_steps=int(sys.argv[2]), eval_every=100))
"""


def start(config, folder, *words):
    (folder / "my.yaml").write_text(json.dumps({**config, "runs_dir": str(folder)}))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *words],  # its main module cannot be imported
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_of_a_script_give_what_one_gives(config, tmp_path):
    script = start(config, tmp_path, "auto", "4")
    printed, _ = script.communicate(timeout=240)
    assert script.returncode == 0, printed
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    one = unetdist.train(config, runs_dir=tmp_path, name="one", eval_every=100)
    torch.set_num_threads(threads)
    assert f"finished=True, step=4, best_miou={one.best_miou}" in printed
    assert re.search(r"folder=PosixPath\('.*/\d{8}-\d{6}-\w+'\)", printed)
    assert "rank 1 of 2" in printed


@pytest.mark.slow
def test_an_interrupt_stops_two_processes_with_a_checkpoint(config, tmp_path):
    script = start(config, tmp_path, "long", "1000000")
    wait_until(lambda: (tmp_path / "long/metrics.jsonl").exists(), 200)
    script.send_signal(signal.SIGINT)
    printed, _ = script.communicate(timeout=240)
    assert printed.rstrip().endswith("KeyboardInterrupt")
    assert "checkpoint of step" in printed
    assert read_status(tmp_path / "long").state == "stopped"


def test_the_error_of_a_process_is_raised(config, tmp_path):
    with pytest.raises(TrainingError, match=r"^.*absent: no manifest\.json"):
        unetdist.train(config, processes=1, runs_dir=tmp_path, data={"train": tmp_path / "absent"})


def wait_until(condition, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"did not happen within {timeout_s:.0f} s"
        time.sleep(0.05)
