"""Behaviour of wandb, and of Accelerate's tracker for it, that the framework leans on. A change fails here first."""

import os

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tests.tracking.samples import wandb_records

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for name in {"NETRC", *(name for name in os.environ if name.startswith("WANDB_"))}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


def test_trackers_of_accelerate_can_be_made_one_by_one(tmp_path, accelerator):
    """Why `make_accelerator` need not know of tracking, and each dashboard has a thread (tracking/dashboard.py)."""
    options = {"mode": "offline", "dir": str(tmp_path), "settings": wandb.Settings(silent=True)}
    tracker = LOGGER_TYPE_TO_CLASS["wandb"]("p", **options)
    tracker.start()
    tracker.store_init_configuration({"lr": 0.1})
    run = tracker.tracker
    assert run.offline
    assert run.project == "p"
    assert run.config["lr"] == 0.1
    tracker.finish()
    for name in ("tensorboard", "mlflow", "trackio"):
        assert name in LOGGER_TYPE_TO_CLASS


def test_values_of_one_step_become_one_row_and_steps_must_not_fall(tmp_path):
    """Why training and validation are logged with the step, and why a continued run may repeat steps online."""
    with wandb.init(project="p", mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        run.log({"a": 1}, step=10)
        run.log({"b": 2}, step=10)
        run.log({"a": 3}, step=5)
        run.log({"a": 4}, step=20)
    rows = [record["history"]["item"] for record in wandb_records(tmp_path) if record["type"] == "history"]
    assert [(row["_step"], row.get("a"), row.get("b")) for row in rows] == [(10, 1, 2), (20, 4, None)]


def test_without_account_and_terminal_wandb_raises(tmp_path):
    """Why the mode is offline where there is no account."""
    with pytest.raises(wandb.errors.UsageError):
        wandb.init(project="p", dir=tmp_path, settings=wandb.Settings(silent=True))


def test_an_account_can_be_looked_up_without_asking_for_one():
    """Why the mode is known before a run starts."""
    assert wandb.setup().settings.mode == "online"
    assert wandb.login(prompt=False, verify=False) is False


def test_end_of_a_run_can_be_limited(monkeypatch):
    """Why a dead network does not hold the end of a run forever."""
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "7")
    assert wandb.setup().settings.finish_timeout == 7
    assert wandb.Settings().finish_timeout == 0


def test_variables_are_known_before_a_run_starts(monkeypatch):
    """Why the run's id, name and project can be chosen before `wandb.init`."""
    for name in ("RUN_ID", "NAME", "PROJECT", "SWEEP_ID"):
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    given = wandb.setup().settings
    assert (given.run_id, given.run_name, given.project, given.sweep_id) == ("run_id", "name", "project", "sweep_id")


def test_a_sweep_takes_id_and_project_from_its_variables(tmp_path, monkeypatch, capsys):
    """Why a trial passes neither to `wandb.init`, which would ignore and warn of them."""
    for name in ("RUN_ID", "PROJECT", "SWEEP_ID"):
        monkeypatch.setenv(f"WANDB_{name}", name.lower())
    with wandb.init(project="mine", id="other", mode="offline", dir=tmp_path) as run:
        assert (run.project, run.id) == ("project", "run_id")
    assert "Ignoring project 'mine'" in capsys.readouterr().err


def test_commands_that_we_tell_the_user_exist():
    from wandb.cli.cli import cli

    assert {"leet", "sync", "login"} <= set(cli.commands)
