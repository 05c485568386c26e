import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import wandb

from tests.tracking.samples import CONFUSION, PALETTE, REPORT, picture, stats, wandb_records
from unetdist.logs import logger
from unetdist.tracking import Tracker, TrackingConfig
from unetdist.tracking.wandb_run import WandbRun, wandb_mode


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """A machine whose user has never heard of wandb."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "NETRC",
        "WANDB_DATA_DIR",
        "WANDB_FINISH_TIMEOUT",
    ):
        monkeypatch.setenv(name, "")  # so that what the code under test sets is undone
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home/config"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logger, level, lambda text, *args: lines.append(text % args))
    return lines


def run(accelerator, run_dir, steps):
    tracker = Tracker(
        TrackingConfig(project="p", num_pictures=2),
        accelerator,
        run_dir=run_dir,
        run_name="my run",
        config={"optim": {"lr": 0.1}},
        palette=PALETTE,
    )
    for step in steps:
        tracker.log_train(stats(), step=step, samples_seen=0)
    pictures = [picture("day/a"), picture("grey", 40, 9, 1), picture("not shown")]
    tracker.log_validation(REPORT, step=step, pictures=pictures, is_best=True)
    tracker.close()
    return tracker


def test_offline_run_is_complete_and_continues_as_the_same_run(tmp_path, no_account, accelerator, said):
    run_dir = tmp_path / "run"
    run(accelerator, run_dir, steps=(10, 20))
    run(accelerator, run_dir, steps=(30,))
    records = wandb_records(run_dir)

    runs = [record["run"] for record in records if record["type"] == "run"]
    saved_id = (run_dir / "wandb_id").read_text().strip()
    assert [(r["run_id"], r["project"], r["display_name"]) for r in runs] == [(saved_id, "p", "my run")] * 2
    configs = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert any(config.get("optim") == {"lr": 0.1} for config in configs)

    history = {r["history"]["item"]["_step"]: r["history"]["item"] for r in records if r["type"] == "history"}
    assert list(history) == [10, 20, 30]
    assert history[10]["train/loss"] == 0.5
    assert history[20]["train/lr"] == 0.01  # in one row with the validation
    assert history[20]["val/iou/sky"] == 0.72
    assert "val/iou/tree" not in history[20]  # absent: a gap in the curve
    assert history[20]["val/pictures.count"] == 2

    assert any("wandb leet" in line and "wandb sync" in line for line in said)
    assert not list(
        (tmp_path / "home").rglob("*artifacts*")
    )  # else sync needs the home folder of that machine

    media = min(run_dir.glob("wandb/offline-run-*/files/media"))  # of the first of the two
    assert len(list(media.glob("images/val/pictures_20_*.jpg"))) == 2
    assert len(list(media.glob("images/val/panels_20_*.jpg"))) == 2
    assert len(list(media.glob("images/val/confusion_20_*.png"))) == 1
    assert list(media.glob("images/mask/val/pictures_20_*.mask.png"))
    classes = json.loads(next(media.glob("table/val/classes_20_*.json")).read_text())
    assert classes["columns"] == ["class", "iou", "dice", "precision", "recall", "target_pixels"]
    assert classes["data"][0][:2] == ["sky", 0.72]
    assert classes["data"][2] == ["tree", None, None, None, None, 0]
    matrix = json.loads(next(media.glob("table/val/confusion_table_20_*.json")).read_text())
    assert [row[1:] for row in matrix["data"]] == CONFUSION.tolist()

    labels = [record["config"]["update"] for record in records if "mask/class_labels" in str(record)][-1]
    for layer in ("target", "prediction"):
        of_layer = labels["_wandb"]["mask/class_labels"][f"val/pictures_wandb_delimeter_{layer}"]["value"]
        assert of_layer == {"0": "sky", "1": "road", "2": "tree", "255": "ignored"}


@pytest.mark.slow
def test_unreachable_server_means_offline(tmp_path, no_account, accelerator, said, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: connection refused
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    opened = WandbRun(
        accelerator, project="p", mode="auto", run_dir=tmp_path / "run", run_name="r", config={}
    )
    opened.log({"train/loss": 0.5}, step=10)
    opened.close()
    assert said[0].startswith("wandb cannot be reached (")
    assert said[0].endswith("); this run is logged offline")
    rows = [r["history"]["item"] for r in wandb_records(tmp_path / "run") if r["type"] == "history"]
    assert [row["train/loss"] for row in rows] == [0.5]


def test_a_failure_offline_is_no_reason_to_try_again(tmp_path, no_account, accelerator, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append("init")
        raise OSError("no space left")

    monkeypatch.setattr(accelerator, "init_trackers", fail)
    with pytest.raises(OSError, match="no space left"):
        WandbRun(accelerator, project="p", mode="auto", run_dir=tmp_path / "run", run_name="r", config={})
    assert calls == ["init"]


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


@pytest.mark.parametrize(
    ("login", "server", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        (urlsplit(wandb.Settings().base_url).netloc, None, "online"),
        ("example.org", None, "offline"),
        ("example.org", "https://example.org", "online"),
        ("api.wandb.ai", "https://example.org", "offline"),
    ],
)
def test_login_means_online(no_account, monkeypatch, login, server, mode):
    (Path.home() / ".netrc").write_text(f"machine {login} login user password {'0' * 40}\n")
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert wandb_mode("auto") == mode


def test_damaged_netrc_is_no_account(no_account, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode("auto") == "offline"
