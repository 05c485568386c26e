import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from tests.tracking.samples import MEASURED, PALETTE, REPORT, picture, shown, wandb_records
from unetdist.tracking import wandb_run
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import StepRow, TrackedRun
from unetdist.tracking.tracker import Tracker
from unetdist.tracking.wandb_run import WandbRun, end_service, wandb_mode

wandb = pytest.importorskip("wandb")


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """A machine whose user has never heard of wandb."""
    used = {"NETRC", "WANDB_DATA_DIR", "WANDB_FINISH_TIMEOUT", "WANDB_INIT_TIMEOUT"}
    for name in used | {name for name in os.environ if name.startswith("WANDB_")}:
        monkeypatch.setenv(name, "")  # so that what the code under test sets is undone
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home/config"))
    end_service()
    yield
    end_service()


def run(accelerator, run_dir, steps, *, after=0):
    tracker = Tracker(
        TrackingConfig(project="p"),
        accelerator,
        run_dir=run_dir,
        run_name="my run",
        config={"optim": {"lr": 0.1}},
        palette=PALETTE,
    )
    tracker.start(step=after, max_steps=100)
    for step in steps:
        tracker.log_train(MEASURED, step=step, samples_seen=0, validation_follows=step == steps[-1])
    report = shown(picture("day/a"), picture("grey", 40, 9))
    tracker.log_validation(report, step=step, is_best=True)
    tracker.close()
    return tracker


def tracked(run_dir, *, step=0, **cfg):
    return TrackedRun(TrackingConfig(**{"project": "p", **cfg}), run_dir, "r", {}, PALETTE, step=step)


def rows_of(run_dir):
    return [r["history"]["item"] for r in wandb_records(run_dir) if r["type"] == "history"]


def test_offline_run_is_complete_and_continues_as_the_same_run(tmp_path, no_account, accelerator, said):
    run_dir = tmp_path / "run"
    save_best(run_dir / "best")
    run(accelerator, run_dir, steps=(10, 20))
    run(accelerator, run_dir, steps=(30,), after=20)
    records = wandb_records(run_dir)

    runs = [record["run"] for record in records if record["type"] == "run"]
    saved_id = (run_dir / "wandb_id").read_text().strip()
    assert [(r["run_id"], r["project"], r["display_name"]) for r in runs] == [(saved_id, "p", "my run")] * 2
    configs = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert any(config.get("optim") == {"lr": 0.1} for config in configs)

    rows = rows_of(run_dir)
    assert [row["_step"] for row in rows] == [10, 20, 30]
    history = {row["_step"]: row for row in rows}
    assert history[10]["train/loss"] == 0.5
    assert history[20]["train/lr"] == 0.01  # in one row with the validation
    assert history[20]["val_iou/sky"] == 0.72
    assert "val_iou/tree" not in history[20]  # absent: a gap in the curve
    assert history[20]["val/pictures.count"] == 2

    (artifact,) = [r["artifact"] for r in records if r["type"] == "artifact" and r["artifact"]["type"] == "model"]
    assert artifact["name"] == f"{saved_id}-best"
    metadata = json.loads(artifact["metadata"])
    assert metadata.pop("work/hours") >= 0
    assert metadata == {
        "best/miou": REPORT.scores.miou,
        "best/step": 20,
        "run": "my run",
        "classes": ["sky", "road", "tree"],
    }
    assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["config.json", "model.safetensors"]
    summary = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    assert summary["best/miou"] == REPORT.scores.miou
    assert summary["best/step"] == 20

    assert any("wandb leet" in line and "wandb sync" in line for line in said)
    assert not list((tmp_path / "home").rglob("*artifacts*"))  # else sync needs the home folder of that machine

    media = min(run_dir.glob("wandb/offline-run-*/files/media"))  # of the first of the two
    assert len(list(media.glob("images/val/pictures_20_*.jpg"))) == 2
    assert len(list(media.glob("images/val/confusion_20_*.png"))) == 1
    assert list(media.glob("images/mask/val/pictures_20_*.mask.png"))

    labels = [record["config"]["update"] for record in records if "mask/class_labels" in str(record)][-1]
    for layer in ("target", "prediction"):
        of_layer = labels["_wandb"]["mask/class_labels"][f"val/pictures_wandb_delimeter_{layer}"]["value"]
        assert of_layer == {"0": "sky", "1": "road", "2": "tree", "255": "ignored"}


def save_best(folder):
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)


@pytest.mark.slow
def test_unreachable_server_means_offline(tmp_path, no_account, accelerator, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: connection refused
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    opened = WandbRun(tracked(tmp_path / "run"))
    opened.send(StepRow(10, {"train/loss": 0.5}))
    opened.close({}, None)
    assert said[0].startswith("wandb cannot be reached (")
    assert said[0].endswith("); this run is logged offline")
    assert [row["train/loss"] for row in rows_of(tmp_path / "run")] == [0.5]


def test_an_error_without_words_means_offline_too(tmp_path, no_account, accelerator, said, monkeypatch):
    start = WandbRun._start

    def fail_online(run, options):
        if options["mode"] == "online":
            raise TimeoutError
        start(run, options)

    monkeypatch.setattr(WandbRun, "_start", fail_online)
    WandbRun(tracked(tmp_path / "run", mode="online")).close({}, None)
    assert said[0] == "wandb cannot be reached (TimeoutError); this run is logged offline"


def test_a_failure_offline_is_no_reason_to_try_again(tmp_path, no_account, accelerator, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append("init")
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(OSError, match="no space left"):
        WandbRun(tracked(tmp_path / "run"))
    assert calls == ["init"]


def test_a_service_that_does_not_end_is_left_alone(monkeypatch):
    """wandb's service sometimes misses the message to end; without a limit the run's process never ended."""
    released = Event()
    monkeypatch.setattr(wandb, "teardown", released.wait)
    monkeypatch.setattr(wandb_run, "SERVICE_END_S", 0.01)
    end_service()
    released.set()


KILLED = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from tests.tracking.test_wandb_run import tracked
from unetdist.tracking.dashboard import StepRow
from unetdist.tracking.wandb_run import WandbRun
PartialState(cpu=True)
run = WandbRun(tracked(Path(sys.argv[1])))
for step in range(1, 4):
    run.send(StepRow(step, {"train/loss": 1.0}))
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_after_a_kill_it_goes_on_and_says_that_rows_may_be_missing(tmp_path, no_account, accelerator, said):
    """wandb writes in blocks of 32 KiB, so a killed process leaves less than it logged."""
    run_dir, root = tmp_path / "run", Path(__file__).parents[2]
    words = [sys.executable, "-c", KILLED, str(run_dir)]
    done = subprocess.run(words, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -9
    run = WandbRun(tracked(run_dir, step=2))  # of the checkpoint
    assert any("after step 3" in line and "metrics.jsonl has all of them" in line for line in said)
    for step in range(1, 7):
        if step > run.last_step:
            run.send(StepRow(step, {"train/loss": 1.0}))
    run.close({}, None)
    steps = [row["_step"] for row in rows_of(run_dir)]
    assert steps == sorted(set(steps))
    assert steps[-3:] == [4, 5, 6]


@pytest.mark.parametrize(("files", "last"), [((), -1), (("wandb_id",), 7), (("wandb_id", "wandb_step"), 30)])
def test_a_restart_sends_only_later_rows(tmp_path, no_account, monkeypatch, said, files, last):
    """A run of an older version has no file of the last step: then that of the checkpoint counts."""
    for name in files:
        (tmp_path / name).write_text("30")
    offline = SimpleNamespace(
        offline=True, define_metric=lambda *_, **__: None, settings=SimpleNamespace(wandb_dir=str(tmp_path))
    )
    monkeypatch.setattr(WandbRun, "_start", lambda run, options: setattr(run, "_wandb", offline))
    assert WandbRun(tracked(tmp_path, mode="offline", step=7)).last_step == last


def opened(run_dir, **cfg):
    """What wandb recorded of a run that was opened and closed."""
    dashboard = WandbRun(tracked(run_dir, **cfg))
    dashboard.send(StepRow(1, {"train/loss": 1.0}))
    dashboard.close({}, None)
    return dashboard._wandb


def run_records(folder):
    return [record["run"] for record in wandb_records(folder) if record["type"] == "run"]


def test_variables_of_wandb_count_where_a_setting_is_not_given(tmp_path, no_account, accelerator, monkeypatch):
    of_environment = {
        "PROJECT": "of-env",
        "ENTITY": "team",
        "NAME": "nice name",
        "RUN_ID": "id-of-env",
        "RUN_GROUP": "folds",
        "TAGS": "a,b",
        "NOTES": "why",
        "DIR": str(tmp_path),
    }
    for name, value in of_environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    opened(tmp_path / "runs/first", project=None)
    (first,) = run_records(tmp_path)  # WANDB_DIR is where wandb's files are
    assert (first["project"], first["entity"], first["display_name"]) == ("of-env", "team", "nice name")
    assert (first["run_id"], first["run_group"], first["tags"], first["notes"]) == (
        "id-of-env",
        "folds",
        ["a", "b"],
        "why",
    )

    monkeypatch.delenv("WANDB_DIR")
    given = {"project": "mine", "entity": "me", "group": "g", "tags": "c, d", "notes": "because"}
    opened(tmp_path / "other/second", **given)
    (second,) = run_records(tmp_path / "other/second")
    assert (second["project"], second["entity"], second["run_group"]) == ("mine", "me", "g")
    assert (second["tags"], second["notes"]) == (["c", "d"], "because")


def test_without_settings_and_variables_the_project_is_unetdist(tmp_path, no_account, accelerator):
    opened(tmp_path / "run", project=None)
    (record,) = run_records(tmp_path / "run")
    assert (record["project"], record["display_name"]) == ("unetdist", "r")


def test_no_two_runs_get_one_id(tmp_path, no_account, accelerator, monkeypatch, said):
    """A WANDB_RUN_ID that is left in a shell must not mix runs, nor tear one apart."""
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert opened(tmp_path / "first").id == "abc"
    second = opened(tmp_path / "second").id
    assert second != "abc"
    assert any("WANDB_RUN_ID (abc)" in line and str(tmp_path / "first") in line for line in said)
    said.clear()
    assert opened(tmp_path / "second", step=1).id == second
    assert any(second in line and "WANDB_RUN_ID (abc)" in line and "--name" in line for line in said)
    said.clear()
    assert opened(tmp_path / "first", step=1).id == "abc"
    assert not any("WANDB_RUN_ID" in line for line in said)


def test_mode_without_account(no_account):
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online") == "online"


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_mode_of_the_environment_is_obeyed(no_account, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode("auto") == mode
    assert wandb_mode("offline") == "offline"


def test_key_means_online(no_account, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode("auto") == "online"


@pytest.mark.slow
@pytest.mark.parametrize(("login", "mode"), [("127.0.0.1:9", "online"), ("example.org", "offline")])
def test_a_login_of_this_server_means_online(no_account, monkeypatch, login, mode):
    (Path.home() / ".netrc").write_text(f"machine {login} login user password {'0' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_mode("auto") == mode
