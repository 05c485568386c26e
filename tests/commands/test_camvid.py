"""CamVid end to end, as a user would: shards, a short training, the score on 1, 2 and 3 processes, predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shared_data import camvid

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", "configs/camvid_small.yaml", "--tracking.tracker", "none", "--data.num_workers", "0"]


def run(*words, processes=1):
    """A launch script as a user starts it."""
    launcher = [sys.executable]
    if processes > 1:
        config = "configs/accelerate/cpu.yaml"
        launcher = ["accelerate", "launch", "--config_file", config, "--num_processes", str(processes)]
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launcher[1:]]
    command = [*launcher, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with shards of CamVid at 120x90, and a model that saw 60 steps."""
    source, folder = camvid(), tmp_path_factory.mktemp("camvid")
    for split in ("train", "val"):
        pictures = ["--images", source / split / "images", "--masks", source / split / "masks"]
        labels = ["--labels", source / "Labels.txt", "--ignore", "Void"]
        run("launch/shard_dataset.py", *pictures, *labels, "--resize", "120x90", "--out", folder / split)
    paths = ["--data.train", folder / "train", "--data.val", folder / "val", "--runs_dir", folder / "runs"]
    length = ["--trainer.max_steps", "60", "--optim.lr", "0.01"]
    said = run("launch/train.py", *CONFIG, *paths, *length)
    assert "done: best validation mIoU" in said
    return folder


def confusion_of(folder, data, processes):
    json_file = folder / f"metrics{processes}.json"
    best = folder / "runs" / "camvid_small" / "best"
    run("launch/evaluate.py", "--model", best, "--data", data, "--json", json_file, processes=processes)
    return json.loads(json_file.read_text())["confusion"]


@pytest.mark.slow
def test_the_confusion_is_equal_on_1_2_and_3_processes_and_to_numpy_on_the_predicted_files(trained):
    """Pictures of the full size, as predict.py sees them, so that resizing in and out is part of the proof."""
    source, data = camvid(), trained / "val_full"
    pictures = ["--images", source / "val" / "images", "--masks", source / "val" / "masks"]
    labels = ["--labels", source / "Labels.txt", "--ignore", "Void", "--out", data]
    run("launch/shard_dataset.py", *pictures, *labels)
    confusions = [confusion_of(trained, data, processes) for processes in (1, 2, 3)]
    assert confusions[0] == confusions[1] == confusions[2]

    best, out = trained / "runs" / "camvid_small" / "best", trained / "predictions"
    run("launch/predict.py", "--model", best, "--input", source / "val" / "images", "--out", out, "--device", "cpu")
    colors = [line.split()[:3] for line in (source / "Labels.txt").read_text().splitlines()]
    expected = np.zeros((11, 11), np.int64)
    for file in sorted((source / "val" / "masks").iterdir()):
        mask = np.asarray(Image.open(file).convert("RGB"))
        target = np.full(mask.shape[:2], 11)
        for index, color in enumerate(colors[:11]):
            target[(mask == np.array(color, np.uint8)).all(2)] = index
        pred = np.asarray(Image.open(out / f"{file.stem}_ids.png"))
        assert pred.shape == target.shape
        valid = target < 11
        np.add.at(expected, (target[valid], pred[valid]), 1)
    assert confusions[0] == expected.tolist()
    assert expected.trace() > 0.3 * expected.sum(), "a model that learned nothing proves little"
