import importlib.util
import json
from types import SimpleNamespace

import pytest

from tests.tracking.samples import NAMES, PALETTE, REPORT, SCORES, picture, stats
from unetdist.errors import ConfigError
from unetdist.logs import logger
from unetdist.tracking import Tracker, TrackingConfig
from unetdist.tracking import tracker as module

MAIN, OTHER = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


def make(run_dir, accelerator=MAIN, **cfg):
    settings = TrackingConfig(**{"tracker": "none", **cfg})
    return Tracker(settings, accelerator, run_dir=run_dir, run_name="r", config={}, palette=PALETTE)


def log_some(tracker, steps=(10, 20)):
    tracker.start(step=0, max_steps=20)
    for step in steps:
        tracker.log_train(stats(), step=step, samples_seen=4 * step)
        tracker.log_validation(REPORT, step=step, pictures=[picture("a")], is_best=True)
    tracker.close()


class Dashboard:
    """Stands in for wandb; raises wherever `broken` says."""

    def __init__(self, *broken):
        self.broken, self.calls = broken, []

    def _call(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise OSError("no space left")

    def __call__(self, *_, **__):
        self._call("start")
        return self

    def log(self, values, step):
        self._call("log")

    def log_scores(self, scores, confusion, pictures, palette, step):
        self._call(f"scores with {len(pictures)}")

    def close(self):
        self._call("close")


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    return said


def test_every_name_is_in_the_file(tmp_path):
    log_some(make(tmp_path), steps=(10,))
    train, validation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert train == {
        "step": 10,
        "train/loss": 0.5,
        "train/lr": 0.01,
        "train/grad_norm": 2.0,
        "train/epoch": 1.5,
        "train/samples_seen": 40,
        "train/bad_samples": 0,
        "train/bad_steps": 0,
        "time/images_per_s": 12.5,
        "time/data_s": 0.1,
        "time/step_s": 0.4,
    }
    of_all = {"loss", "miou", "miou_low", "miou_high", "pixel_accuracy", "fw_iou"}
    of_class = {f"{kind}/{name}" for kind in ("iou", "dice", "precision", "recall") for name in NAMES}
    assert validation.keys() == {"step"} | {f"val/{name}" for name in of_all | of_class}
    assert validation["val/miou"] == SCORES.miou
    assert validation["val/iou/sky"] == 0.72
    assert validation["val/iou/tree"] is None
    assert (validation["val/miou_low"], validation["val/miou_high"]) == (0.6, 0.71)


def test_progress_counts_steps(tmp_path, monkeypatch):
    amounts = []
    tracker = make(tmp_path)
    tracker.start(step=30, max_steps=100)
    monkeypatch.setattr(tracker, "_bar", SimpleNamespace(advance=lambda amount, note: amounts.append(amount)))
    for step in (40, 50, 55):
        tracker.log_train(stats(), step=step, samples_seen=0)
    tracker.close()
    assert amounts == [10, 10, 5]


def test_other_ranks_write_nothing(tmp_path, capfd):
    log_some(make(tmp_path / "run", OTHER, tracker="wandb"))
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_the_dashboard_gets_what_the_file_gets_and_as_many_pictures_as_asked_for(tmp_path, monkeypatch):
    dashboard = Dashboard()
    monkeypatch.setattr(module, "WandbRun", dashboard)
    log_some(make(tmp_path, tracker="wandb", num_pictures=0), steps=(10,))
    assert dashboard.calls == ["start", "log", "log", "scores with 0", "close"]


@pytest.mark.parametrize("broken", ["start", "log", "scores with 1", "close"])
def test_a_broken_dashboard_is_told_once_and_stops_nothing(tmp_path, monkeypatch, warnings, broken):
    monkeypatch.setattr(module, "WandbRun", Dashboard(broken))
    log_some(make(tmp_path, tracker="wandb"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert warnings == ["wandb failed and is left out: OSError: no space left; training goes on"]


def test_a_full_disk_is_told_once_and_stops_nothing(tmp_path, warnings):
    (tmp_path / "run").write_text("a file where the folder should be")
    log_some(make(tmp_path / "run"))
    assert len(warnings) == 1
    assert warnings[0].startswith("metrics.jsonl failed and is left out: ")


def test_missing_package_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match="wandb.*must be installed; run pip install wandb, or use --tracking"
    ):
        make(tmp_path, OTHER, tracker="wandb")  # on each rank alike
    make(tmp_path, tracker="none").close()


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"tracking.num_pictures \(-1\) must be at least 0; use 0"):
        TrackingConfig(num_pictures=-1)
    with pytest.raises(ConfigError, match=r"tracking.project \(''\) must be a name; use unetdist"):
        TrackingConfig(project="")
