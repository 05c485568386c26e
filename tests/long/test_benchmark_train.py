"""Training loops measured in processes of their own."""

import json

import pytest

from tests.benchmarks import __main__ as script

pytestmark = pytest.mark.long


def test_a_training_loop_beside_ours(tmp_path, capsys):
    words = "train --against careful --cases student:32x32:2 --samples 8 --rounds 1 --seconds 0.01 --workers 1"
    words += " --check-steps 3 --precision fp32 --work"
    assert script.main([*words.split(), str(tmp_path / "work"), "--out", str(tmp_path / "out")]) == 0
    assert "the best a careful user would write" in capsys.readouterr().out
    (case,) = json.loads((tmp_path / "out" / "train.json").read_text())["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "careful"]
    for row in case["rows"]:
        assert row["void"] is None
        assert row["images_per_s"]["median"] > 0
        assert row["first_step_s"] > 0
