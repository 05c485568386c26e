"""Every step of launch/gpu_check.sh at a tiny size, on any machine."""

import json
import sys

import pytest

from tests.launch.test_gpu_check import check


@pytest.mark.long
def test_a_rehearsal_gives_every_number(tmp_path):
    done = check(tmp_path, PYTHON=sys.executable, REHEARSE="1", LIMIT_S="1200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no numbers" not in done.stdout
    for name, count in (("student", 4), ("classic", 2), ("small_batches", 3)):
        (case,) = json.loads((tmp_path / "out" / f"{name}.json").read_text())["cases"]
        assert len(case["rows"]) == count
        assert all(row["images_per_s"]["median"] > 0 for row in case["rows"])
