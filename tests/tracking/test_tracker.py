import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.tracking.samples import CONFUSION, MEASURED, NAMES, PALETTE, REPORT, SCORES, picture, shown
from unetdist.cli.logs import logger
from unetdist.evaluation.metrics import Scores
from unetdist.tracking import tracker as module
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import Dashboard
from unetdist.tracking.terminal import train_note
from unetdist.tracking.tracker import Tracker

SCORES_BETTER = Scores.from_confusion(CONFUSION * [[1, 0, 0], [0, 1, 0], [0, 0, 1]], NAMES)
MAIN, OTHER = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


def make(run_dir, accelerator=MAIN, **cfg):
    settings = TrackingConfig(**{"tracker": "none", **cfg})
    return Tracker(settings, accelerator, run_dir=run_dir, run_name="r", config={}, palette=PALETTE)


def log_some(tracker, steps=(10, 20), *, start=0, max_steps=20):
    tracker.start(step=start, max_steps=max_steps)
    for step in steps:
        tracker.log_train(MEASURED, step=step, samples_seen=4 * step, validation_follows=True)
        tracker.log_validation(REPORT, step=step, is_best=True)
    tracker.close()


class Told(Dashboard):
    """Stands in for a dashboard; raises wherever `broken` says."""

    def __init__(self, *broken, last_step=-1):
        self.broken, self.calls, self.rows, self.ends = broken, [], [], []
        self.last_step = last_step

    def _call(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise OSError("no space left")

    def __call__(self, name, run):
        self.name, self.run = name, run
        self._call("open")
        return self

    def send(self, row):
        self.rows.append(row)
        self._call("send")

    def close(self, facts, best):
        self.ends.append((facts, best))
        self._call("close")


@pytest.fixture
def told(monkeypatch):
    """Opens a stand-in in place of any dashboard."""

    def use(*broken, last_step=-1):
        dashboard = Told(*broken, last_step=last_step)
        monkeypatch.setattr(module, "open_dashboard", dashboard)
        return dashboard

    return use


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    return said


def test_every_name_is_in_the_file(tmp_path):
    log_some(make(tmp_path), steps=(10,))
    train, validation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert 0 < train.pop("time/hours") < 1
    assert train == {"step": 10, "train/samples_seen": 40, **MEASURED}
    of_all = {"loss", "miou", "miou_low", "miou_high", "pixel_accuracy", "fw_iou"}
    of_class = {f"{kind}/{name}" for kind in ("iou", "dice", "precision", "recall") for name in NAMES}
    assert validation.keys() == {"step"} | {f"val/{name}" for name in of_all | of_class}
    assert validation["val/miou"] == SCORES.miou
    assert validation["val/iou/sky"] == 0.72
    assert validation["val/iou/tree"] is None
    assert (validation["val/miou_low"], validation["val/miou_high"]) == (0.6, 0.71)


def test_progress_counts_every_step_and_keeps_its_note(tmp_path, monkeypatch):
    moves = []
    tracker = make(tmp_path)
    tracker.start(step=30, max_steps=100)
    monkeypatch.setattr(tracker, "_bar", SimpleNamespace(advance=lambda *move: moves.append(move)))
    tracker.show_step(31)
    tracker.show_step(32)
    tracker.log_train(MEASURED, step=32, samples_seen=0)
    tracker.show_step(33)
    tracker.close()
    note = train_note(MEASURED)
    assert note
    assert moves == [(1, ""), (1, ""), (0, note), (1, note)]


def test_other_ranks_write_nothing(tmp_path, capfd):
    log_some(make(tmp_path / "run", OTHER, tracker="wandb"))
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_a_step_is_told_once_with_its_validation(tmp_path, told):
    dashboard = told()
    tracker = make(tmp_path, tracker="wandb")
    tracker.start(step=0, max_steps=20)
    tracker.log_train(MEASURED, step=5, samples_seen=20)
    tracker.log_train(MEASURED, step=10, samples_seen=40, validation_follows=True)
    tracker.log_validation(shown(picture("a")), step=10, is_best=True)
    tracker.close()
    first, second = dashboard.rows
    assert (first.step, first.values["train/loss"], first.report) == (5, 0.5, None)
    assert (second.step, second.values["train/loss"], second.values["val/miou"]) == (10, 0.5, SCORES.miou)
    assert "val_iou/tree" not in second.values  # absent: a gap in the curve
    assert [each.key for each in second.report.examples] == ["a"]
    assert dashboard.calls == ["open", "send", "send", "close"]
    ((facts, best),) = dashboard.ends
    assert (facts["best/miou"], facts["best/step"], best) == (SCORES.miou, 10, None)
    assert facts["work/hours"] >= second.values["work/hours"] > 0


def test_what_a_dashboard_lacks_is_sent_when_the_run_goes_on(tmp_path, told):
    log_some(make(tmp_path), steps=(10, 20, 30), max_steps=60)  # nobody watches
    dashboard = told(last_step=10)
    tracker = make(tmp_path, tracker="tensorboard")
    tracker.start(step=20, max_steps=60)  # that of the checkpoint: 30 will come again
    tracker.log_train(MEASURED, step=30, samples_seen=0)
    tracker.close()
    assert [row.step for row in dashboard.rows] == [20, 30]
    assert dashboard.rows[0].values["train/loss"] == MEASURED["train/loss"]
    assert dashboard.rows[0].values["val/miou"] == SCORES.miou
    assert dashboard.run.step == 20
    assert dashboard.ends[0][0]["best/step"] == 10


def test_a_validation_that_was_interrupted_is_told_with_its_step_when_it_is_made_up_for(tmp_path, told):
    dashboard = told()
    tracker = make(tmp_path, tracker="wandb")
    tracker.start(step=0, max_steps=20)
    tracker.log_train({**MEASURED, "lost": math.nan}, step=10, samples_seen=40, validation_follows=True)
    tracker.close()  # a signal came
    assert dashboard.rows == []
    tracker = make(tmp_path, tracker="wandb")
    tracker.start(step=10, max_steps=20, owes_validation=True)
    tracker.log_validation(REPORT, step=10, is_best=True)
    tracker.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    (row,) = dashboard.rows
    assert (row.step, row.values["train/loss"], row.values["val/miou"]) == (10, 0.5, SCORES.miou)
    assert "lost" not in row.values


def test_of_a_finished_run_only_what_is_behind_is_opened(tmp_path, told):
    dashboard = told("close")
    log_some(make(tmp_path, tracker="wandb"))
    again = told()
    log_some(make(tmp_path, tracker="wandb"), steps=(), start=20)
    assert [row.step for row in again.rows] == [10, 20]
    assert again.calls == ["open", "send", "send", "close"]
    log_some(make(tmp_path, tracker="wandb"), steps=(), start=20)
    assert again.calls == ["open", "send", "send", "close"]
    assert dashboard.calls[-2:] == ["close", "close"]


def test_the_best_weights_are_kept_once(tmp_path, told):
    dashboard = told()
    (tmp_path / "best").mkdir()
    log_some(make(tmp_path, tracker="mlflow"), steps=(10,))
    log_some(make(tmp_path, tracker="mlflow"), steps=(20,), start=10)  # no better
    better = replace(REPORT, scores=SCORES_BETTER)
    tracker = make(tmp_path, tracker="mlflow")
    tracker.start(step=20, max_steps=30)
    tracker.log_validation(better, step=30, is_best=True)
    tracker.close()
    assert [best for _, best in dashboard.ends] == [tmp_path / "best", None, tmp_path / "best"]
    assert [facts["best/step"] for facts, _ in dashboard.ends] == [10, 10, 30]


def test_the_hours_of_a_run_go_on(tmp_path, told):
    dashboard = told()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10, "train/loss": 1.0, "time/hours": 5.0}) + "\n")
    log_some(make(tmp_path, tracker="wandb"), steps=(20,), start=10)
    assert 5 < dashboard.rows[-1].values["work/hours"] < 5.1


@pytest.mark.parametrize("broken", ["open", "send", "close"])
def test_a_broken_dashboard_is_told_once_and_stops_nothing(tmp_path, told, warnings, broken):
    told(broken)
    log_some(make(tmp_path, tracker="wandb"))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert warnings == [
        "wandb failed and gets no more rows: OSError: no space left; the training continues. Start the same command "
        "again to send the rest"
    ]


def test_one_of_several_fails_alone(tmp_path, monkeypatch, warnings):
    dashboards = {"wandb": Told("open"), "mlflow": Told("send"), "tensorboard": Told()}
    monkeypatch.setattr(module, "open_dashboard", lambda name, run: dashboards[name](name, run))
    log_some(make(tmp_path, tracker=["wandb", "mlflow", "tensorboard"]))
    assert [row.step for row in dashboards["tensorboard"].rows] == [10, 20]
    assert sorted(text.split()[0] for text in warnings) == ["mlflow", "wandb"]


def test_a_full_disk_is_told_and_stops_nothing(tmp_path, warnings):
    (tmp_path / "run").write_text("a file where the folder should be")
    log_some(make(tmp_path / "run"))
    assert len(warnings) == 2  # when it happens, and at the end
    assert warnings[0].startswith("metrics.jsonl failed: ")
