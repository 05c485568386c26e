"""The loops themselves are tested in tests/benchmark/loops."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks import validation
from tests.benchmarks.contenders import VoidError


class FakeLoop:
    """Answers as a loop would; the one with the best flags cannot start."""

    def __init__(self, contender, **_):
        self.name = contender.name

    def open(self, job):
        if self.name == "plain-best":
            raise VoidError("its process ended: out of memory")

    def ask(self, do, *, path=None, **_):
        if do == "save":
            np.savez(path, images=np.full((1, 12, 12), 7), masks=np.zeros(1))
        return {"samples": 300.0 if self.name == "ours" else 200.0, "seconds": 1.0, "cpu_seconds": 1.0}

    def close(self):
        pass


def test_a_pass_at_a_time_and_who_fails_is_void(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validation, "Process", FakeLoop)
    parser = argparse.ArgumentParser()
    validation.add_arguments(parser)
    words = ["--case", "student:32x24:2", "--samples", "2", "--rounds", "2", "--precision", "fp32"]
    args = parser.parse_args([*words, "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    (tmp_path / "work/eval/32x24/logs").mkdir(parents=True)
    validation.run(args, {"cpu": "a chip", "cores": 2, "date": "2030-01-01T00:00", "commit": "abc"})
    ours, plain, best = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert ours["images_per_s"]["median"] == 300
    assert plain["ours_is_faster_by"]["median"] == 1.5
    assert best["void"] == "its process ended: out of memory"
    assert "void: plain loop, best flags: its process ended" in capsys.readouterr().out
    with Image.open(tmp_path / "eval.png") as picture:
        assert picture.width > 400


def test_counts_unlike_ours_are_told():
    ours = np.array([[90, 10], [0, 100]])
    counted = {"ours": ours, "plain": np.array([[100, 0], [0, 100]]), "plain-best": 2 * ours}
    problems = validation.count_problems(counted)
    assert problems["plain"] == "it sees other classes than ours in 5.0 % of the pixels"
    assert problems["plain-best"] == "it counts 400 pixels, ours 200"
    assert validation.count_problems({"plain": ours}) == {}


@pytest.mark.parametrize("void", ["ours", "plain"])
def test_without_ours_there_is_no_ratio(void):
    names = [name for name in validation.TITLES if name != void]
    rounds = [{name: {"samples": 1.0, "seconds": 1.0, "cpu_seconds": 1.0} for name in names}]
    rows = validation.rows_of(validation.Measured(rounds, {void: "why"}))
    assert [row["name"] for row in rows if "ours_is_faster_by" in row] == (names if void != "ours" else [])
