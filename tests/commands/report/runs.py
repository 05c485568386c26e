"""Folders of runs as a training leaves them, without the training."""

import json

import numpy as np
import yaml

from tests.predict.export.models import saved_model
from tests.synthetic import CLASS_NAMES, write_shards
from unetdist.evaluation.metrics import Scores
from unetdist.model.saved_model import save_model

CONFUSION = np.array([[90, 8, 2], [10, 80, 10], [0, 30, 0]])


def write_run(folder, *, val=None, settings=None, model=True, steps=40, **status):
    """A run in `folder`, whose weights were never trained, and of which `status` was noted."""
    folder.mkdir(parents=True)
    values = {
        "name": folder.name,
        "runs_dir": str(folder.parent),
        "data": {"train": "shards/train", "val": None if val is None else str(val), "num_workers": 0},
        **(settings or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    rows = [row for step in range(10, steps + 1, 10) for row in (train_row(step), val_row(step))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if model:
        write_weights(folder / "best")
    facts = {"state": "finished", "step": steps, "attempts": 1, "deaths": [], "reason": "", "is_final": False}
    (folder / "status.json").write_text(json.dumps({**facts, **status}))
    return folder


def write_weights(folder):
    scores = Scores.from_confusion(CONFUSION, CLASS_NAMES)
    report = {**scores.to_record(), "miou_interval_95": [0.4, 0.6], "loss": 0.5, "num_samples": 7}
    saved = saved_model()
    save_model(
        folder,
        saved.model.state_dict(),
        model=saved.model.config,
        palette=saved.palette,
        resize=None,
        facts={"step": 30, "report": {**report, "confusion": CONFUSION.tolist()}},
    )


def train_row(step):
    return {
        "step": step,
        "train/loss": 2.0 / step,
        "train/lr": 0.001,
        "train/epoch": step / 10,
        "train/samples_seen": 8 * step,
        "train/bad_samples": 1,
        "train/bad_steps": 2,
        "time/images_per_s": 16.0,
        "time/data_s": 0.1,
        "time/step_s": 0.5,
    }


def val_row(step):
    row = {"step": step, "val/loss": 3.0 / step, "val/miou": step / 100}
    row |= {"val/miou_low": step / 100 - 0.05, "val/miou_high": step / 100 + 0.05}
    return row | {"val/iou/sky": 0.9, "val/iou/road": step / 100, "val/iou/tree": None}


def validation_set(tmp_path, count=7):
    write_shards(tmp_path / "val", count)
    return tmp_path / "val"
