"""That it measures is shown in tests/long/test_benchmark_train.py."""

import argparse
import json

import pytest
from PIL import Image

from tests.benchmarks import train_command
from tests.benchmarks.contenders import VoidError
from tests.benchmarks.loops.trace import PARTS
from tests.benchmarks.train import TrainCase
from unetdist.model.limit import H200


def test_words_become_values():
    assert train_command.parse_train_case("classic:480x352:8") == TrainCase("classic", 480, 352, 8)
    assert train_command.parse_precisions("bf16,fp32") == ("bf16", "fp32")
    assert train_command.default_workers() >= 1


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (
            train_command.parse_train_case,
            "huge:8x8:1",
            "invalid PRESET:WxH:BATCH value: 'huge:8x8:1'; use student:",
        ),
        (train_command.parse_train_case, "student:8x8", "invalid PRESET:WxH:BATCH value"),
        (train_command.parse_precisions, "bf16,int8", "invalid precisions: 'bf16,int8'; use fp32,bf16,fp16"),
    ],
)
def test_what_makes_no_sense_is_refused(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)


def test_defaults_are_cases_that_can_be_run():
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    args = parser.parse_args([])
    assert all(isinstance(case, TrainCase) for case in args.cases)
    assert args.rounds > 1


class FakeLoop:
    """Answers as a loop would; Lightning is not there, and `milesial` learns nothing."""

    def __init__(self, contender, **_):
        self.name = contender.name

    def open(self, job):
        if self.name == "lightning":
            raise VoidError("python has no module lightning; install: python -m pip install lightning")
        return {"first_step_s": 2.0}

    def ask(self, do, **_):
        return {
            "check": {"loss": 2.5 if self.name == "milesial" else 1.0},
            "time": {"samples": 300.0 if self.name == "ours" else 100.0, "seconds": 1.0, "cpu_seconds": 1.0},
            "facts": {"peak_gb": 1.0, "versions": {"torch": "2"}},
            "syncs": {"syncs": None},
            "split": dict.fromkeys(PARTS, 1.0),
        }[do]

    def close(self):
        pass


def run_with(loop, folder, monkeypatch, *words: str) -> None:
    monkeypatch.setattr("tests.benchmarks.train.Process", loop)
    monkeypatch.setattr("tests.benchmarks.train_command.measure_peaks", lambda *_: H200)
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    given = [*words, "--samples", "2", "--rounds", "2", "--precisions", "fp32"]
    args = parser.parse_args([*given, "--work", str(folder / "work"), "--out", str(folder)])
    train_command.run(args, {"cpu": "a chip", "cores": 2, "date": "2030-01-01T00:00", "commit": "abc"})


@pytest.mark.parametrize(("asked", "rounds"), [(1, 0), (4, 1)])
def test_a_benchmark_that_is_cut_short_has_written_what_it_knew(tmp_path, monkeypatch, asked, rounds):
    """The last loop is cut short at its start, or in its second round."""

    class CutShort(FakeLoop):
        rounds = 0

        def ask(self, do, **words):
            self.rounds += do == "time"
            if self.name == "careful" and self.rounds == asked:
                raise KeyboardInterrupt
            return super().ask(do, **words)

    with pytest.raises(KeyboardInterrupt):
        run_with(
            CutShort, tmp_path, monkeypatch, "--against", "accelerate,careful", "--cases", "student:32x32:2"
        )
    (case,) = json.loads((tmp_path / "train.json").read_text())["cases"]
    assert [row["alone_images_per_s"] for row in case["rows"]][:2] == [300, 100]
    assert [row["first_step_s"] for row in case["rows"]][:2] == [2, 2]
    assert len(case["raw"]["rounds"]) == rounds


def test_who_cannot_be_measured_is_void_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    loops = ["--against", "accelerate,lightning,milesial,careful"]
    run_with(FakeLoop, tmp_path, monkeypatch, *loops, "--cases", "student:32x32:2", "student:32x24:2")
    record = json.loads((tmp_path / "train.json").read_text())
    assert len(record["cases"]) == 2
    rows = {row["name"].split()[0]: row for row in record["cases"][0]["rows"]}
    assert rows["accelerate"]["ours_is_faster_by"]["median"] == 3
    assert rows["lightning"]["void"].endswith("install: python -m pip install lightning")
    assert rows["milesial"]["void"].startswith("its loss after the steps of the check is 2.500")
    out = capsys.readouterr().out
    assert "the best a careful user would write" in out
    assert "void: Lightning fp32: python has no module lightning" in out
    with Image.open(tmp_path / "train.png") as picture:
        assert picture.height > 400
