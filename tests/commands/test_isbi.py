"""ISBI 2012, grey pictures with black and white masks, goes in with only its Labels.txt."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.shared_data import isbi
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest

ROOT = Path(__file__).parents[2]


def test_black_and_white_masks_need_nothing_but_their_labels(tmp_path):
    source = isbi()
    words = ["--images", source / "images", "--masks", source / "masks", "--labels", source / "Labels.txt"]
    command = [sys.executable, "launch/shard_dataset.py", *map(str, words), "--out", str(tmp_path / "shards")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = Manifest.load(tmp_path / "shards")
    assert Palette.from_records(manifest.palette_records).class_names == ("Membrane", "Cell")
    masks = np.stack([np.asarray(Image.open(file)) for file in sorted((source / "masks").iterdir())])
    assert manifest.class_pixels == ((masks == 0).sum(), (masks == 255).sum())
    assert (manifest.num_samples, manifest.ignored_pixels, manifest.channels) == (30, 0, 1)
