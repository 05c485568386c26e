"""The README is a promise: its commands run as they stand, its map shows what is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_architecture import ROOMS
from unetdist.data.shapes import write_shapes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = "--trainer.max_steps 2 --trainer.global_batch_size 2 --augment.crop_size [64,64] " \
        "--optim.warmup_steps 0 --tracking.tracker none --data.num_workers 0"  # fmt: skip


def commands(heading):
    """The lines of all shell blocks of a section, without comments."""
    section = re.search(rf"## {heading}\n(.*?)\n##+ ", README, re.S)[1]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_commands_for_ones_own_data_run_as_they_stand(tmp_path):
    write_shapes(tmp_path / "mine", count=6, seed=0, size=(64, 64))
    init, shard, doctor, train, evaluate, predict, report = commands("Train on your own images")
    shard = shard.replace("--images DIR", "--images mine/images").replace("--masks DIR", "--masks mine/masks")
    shard = shard.replace("Labels.txt", "mine/Labels.txt")
    predict = predict.replace("FILE_OR_DIR", "mine/images").replace("DIR", "predictions")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (init, shard, f"{doctor} {SHORT}", f"{train} {SHORT}", evaluate, predict, report):
        line = re.sub("^unetdist ", f"{shlex.quote(sys.executable)} -m unetdist ", command)
        done = subprocess.run(shlex.split(line), cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "metrics.json").exists()
    ids = np.asarray(Image.open(next((tmp_path / "predictions").glob("*_ids.png"))))
    assert ids.shape == (64, 64)
    assert len(list((tmp_path / "predictions").glob("*_overlay.png"))) == 6
    assert "<html" in next(tmp_path.rglob("report.html")).read_text(encoding="utf-8")


def test_the_map_names_every_room_in_order():
    text = re.search(r"# The map\n.*?```\n(.*?)```", (ROOT / "unetdist" / "README.md").read_text(), re.S)[1]
    assert tuple(re.findall(r"(?m)^(\w+)(?:\.py|/) ", text)) == ROOMS


def test_the_readme_is_short_and_begins_with_a_command():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("```bash") < 25


READMES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/**/README.md"))]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_every_path_that_is_named_exists(path):
    text = path.read_text(encoding="utf-8")
    named = {ROOT / name for name in re.findall(r"`((?:launch|configs|tests|unetdist)/[\w./]+)`", text)}
    linked = {path.parent / link for link in re.findall(r"\]\((?!\w+:)([^)#]+)\)", text)}
    assert [str(one) for one in named | linked if not one.exists()] == []
