"""Training loops that are measured, each in its own process."""

import json

import pytest
from PIL import Image

from tests.benchmarks import __main__ as script

pytestmark = pytest.mark.long


def test_training_loops_beside_ours(tmp_path, capsys):
    words = ["train", "--against", "careful", "--cases", "student:32x32:2", "--samples", "8", "--rounds", "1"]
    words += ["--seconds", "0.01", "--workers", "0", "--check-steps", "3", "--precisions", "fp32"]
    assert script.main([*words, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]) == 0
    assert "the best a careful user would write" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "out" / "train.json").read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours fp32", "careful fp32"]
    for row in case["rows"]:
        assert row["void"] is None
        assert row["images_per_s"]["median"] > 0
        assert row["first_step_s"] > 0
        assert row["split_ms"]["forward"] > 0
    with Image.open(tmp_path / "out" / "train.png") as picture:
        assert picture.width > 400
