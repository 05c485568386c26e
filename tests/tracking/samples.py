"""What a run would hand to its tracker."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from unetdist.data.labels import Palette
from unetdist.evaluation.boundary import BoundaryScores
from unetdist.evaluation.evaluate import Report
from unetdist.evaluation.examples import ScoredImage
from unetdist.evaluation.metrics import NUM_BINS, Reliability, Scores

NAMES = ("sky", "road", "tree")
PALETTE = Palette.from_records(
    [
        *({"index": i, "id": i, "name": name, "color": [80 * i, 10, 20]} for i, name in enumerate(NAMES)),
        {"index": None, "id": 9, "name": "void", "color": [0, 0, 0]},
    ]
)
CONFUSION = np.array([[90, 10, 0], [25, 75, 0], [0, 0, 0]])
"""No tree anywhere."""

SCORES = Scores.from_confusion(CONFUSION, NAMES)
OUTLINES = BoundaryScores(NAMES, np.array([0.5, 0.25, np.nan]), 0.375)
RELIABILITY = Reliability.from_counts(np.stack([np.eye(1, NUM_BINS, 12, dtype=np.int64)[0] * n for n in (200, 165, 0)]))
REPORT = Report(CONFUSION, SCORES, interval=(0.6, 0.71), loss=0.25, num_samples=2)
FULL_REPORT = replace(REPORT, boundary=OUTLINES, reliability=RELIABILITY)
"""With everything that is scored on request; the expected calibration error is 82.5 %."""

MEASURED = {
    "train/loss": 0.5,
    "train/lr": 0.01,
    "train/grad_norm": 2.0,
    "train/epoch": 1.5,
    "train/bad_samples": 0,
    "train/bad_steps": 0,
    "time/images_per_s": 12.5,
    "time/data_s": 0.1,
    "time/step_s": 0.4,
}
"""Values as `Meter.read` returns them."""


def shown(*images: ScoredImage) -> Report:
    return replace(REPORT, examples=images)


def picture(key: str, height: int = 20, width: int = 30, channels: int = 3) -> ScoredImage:
    rng = np.random.default_rng(0)
    mask = rng.choice([0, 1, 255], (height, width)).astype(np.uint8)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return ScoredImage(0, float("nan"), image, mask, np.minimum(mask, 1), key=key)


def wandb_records(run_dir: Path) -> list[dict]:
    """The records of all offline runs in a run's folder, oldest first."""
    wandb = str(Path(sys.executable).with_name("wandb"))
    records = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        done = subprocess.run(
            [wandb, "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=True
        )
        records += [json.loads(line) for line in done.stdout.splitlines()]
    return records
