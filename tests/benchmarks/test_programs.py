"""The harness, and each program from its command line to JSON and chart."""

import argparse
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.benchmarks import __main__ as script
from tests.benchmarks import data, eval, harness, limits, train
from tests.benchmarks.harness import OURS, Contender, Results, VoidError, choose, run_child, spread
from tests.benchmarks.roofline import Peaks, layers_of
from unetdist.errors import ConfigError
from unetdist.model.config import UNetConfig

FILES = Contender("files", "files [PIL]")


def measured(**rates):
    """Results with the given rates of ours and of files, round by round."""
    results = Results("a case", [Contender(OURS, "ours"), FILES])
    results.rounds = [
        {name: {"images": rate, "seconds": 1.0} for name, rate in zip(rates, each, strict=True)}
        for each in zip(*rates.values(), strict=True)
    ]
    return results


def test_ratios_are_taken_within_a_round():
    ours, files = measured(ours=[10, 40, 90], files=[10, 20, 30]).rows()
    assert ours["images_per_s"]["median"] == 40
    assert files["ours_is_faster_by"] == {"median": 2, "low": 1.5, "high": 2.5}
    assert spread([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}


def test_every_contender_runs_in_every_round_in_changing_order():
    results, order = Results("a case", [Contender(name, name) for name in "abcd"]), []
    results.measure(lambda contender: order.append(contender.name) or {"images": 1, "seconds": 1.0}, 8)
    rounds = ["".join(order[at : at + 4]) for at in range(0, 32, 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 3


def test_a_contender_that_fails_is_void_and_the_others_go_on(capsys):
    results = Results("a case", [Contender(OURS, "ours"), FILES])

    def fail(contender):
        if contender == FILES:
            raise VoidError("no module [x]")
        return {"images": 8, "seconds": 2.0, "peak_mib": 100.0}

    results.check(fail)
    results.measure(fail, 2)
    ours, files = results.rows()
    assert (ours["images_per_s"]["median"], ours["peak_mib"]) == (4.0, 100.0)
    assert (files["void"], "images_per_s" in files) == ("no module [x]", False)
    harness.print_table(results, {"MiB": lambda row: f"{row['peak_mib']:.0f}"})
    assert "files is void: no module [x]" in capsys.readouterr().out


def test_a_child_is_a_fresh_process_on_its_cores(tmp_path):
    log = tmp_path / "logs" / "log.txt"

    def run(function, arguments):
        return run_child(function, arguments, python=sys.executable, log=log, cores=[0])

    found = run("tests.benchmarks.child:versions_of", {"packages": ["numpy", "no-such-package"]})
    assert list(found) == ["numpy"]
    with pytest.raises(VoidError, match="has no module no_such_module"):
        run("no_such_module:f", {})
    with pytest.raises(VoidError, match=r"unexpected keyword.*log\.txt"):
        run("tests.benchmarks.child:versions_of", {"x": 1})
    with pytest.raises(VoidError, match="its process ended"):
        run("os:_exit", {"status": 3})
    with pytest.raises(ConfigError, match=r"--peers-python \(/no/python\)"):
        run_child("os:getpid", {}, python="/no/python", log=log)


def test_a_changed_checkout_is_marked_and_outside_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    assert harness.machine_facts(["data", "--work", "a b"])["commit"] is None
    (tmp_path / "unetdist").mkdir()
    (tmp_path / "unetdist" / "a.py").write_text("1")
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = harness.machine_facts([])["commit"]
    (tmp_path / "unetdist" / "a.py").write_text("2")
    facts = harness.machine_facts(["data", "--work", "a b"])
    assert facts["commit"] == f"{clean}+"
    assert facts["command"].endswith("data --work 'a b'")
    assert facts["cores"] >= 1


def test_contenders_are_chosen_by_name():
    known = [FILES, Contender("dali", "DALI")]
    assert choose("all", known) == known
    assert choose("dali", known) == known[1:]
    with pytest.raises(ConfigError, match=r"--against .*tfdata.*files, dali"):
        choose("dali,tfdata", known)


def test_bars_are_as_long_as_their_rates():
    picture = np.asarray(harness.draw_chart([measured(ours=[40], files=[10])], "x"))
    blue, grey = ((picture == color).all(-1).sum() for color in ((31, 119, 180), (176, 190, 205)))
    assert 3.8 < blue / grey < 4.2


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (data.parse_case, "480x360:256", ["480", "480x360:400", "original"]),
        (train.parse_train_case, "student:48x32:2", ["student:48:2", "huge:48x32:2"]),
        (limits.parse_network, "16,32:8x9", ["16", "0:8x8", "16,:8x8"]),
        (limits.parse_peaks, "788,4300", ["788", "0,4300", "788,inf", "nan,1", "a,b"]),
        (harness.positive, "3", ["0", "-1", "x"]),
    ],
)
def test_arguments_that_make_no_sense_are_refused(parse, good, bad):
    assert parse(good)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


@pytest.mark.parametrize("name", ["encoder.0.layers.1.conv", "decoder.0.up"])
def test_what_is_timed_is_the_layer(name, monkeypatch):
    (layer,) = (layer for layer in layers_of(UNetConfig(widths=(4, 8)), 3, (8, 12)) if layer.name == name)
    drawn, draw = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: (drawn.append(draw(*a, **k)), drawn[-1])[1])
    calls, num_bytes = limits.calls_of(layer, 2, torch.device("cpu"), torch.float32)
    given, gradient, weight = (tensor.clone().requires_grad_() for tensor in drawn)
    is_up = name.endswith("up")
    out = F.conv_transpose2d(given, weight, stride=2) if is_up else F.conv2d(given, weight, padding=1)
    torch.testing.assert_close(calls["forward"](), out)
    wanted = torch.autograd.grad(out, (given, weight), gradient)
    torch.testing.assert_close(calls["input gradient"]()[0], wanted[0])
    torch.testing.assert_close(calls["weight gradient"]()[1], wanted[1])
    assert num_bytes == 4 * (given.numel() + weight.numel() + out.numel())


def test_limits_of_a_device_that_is_not_here(tmp_path):
    words = "limits --cases 4,8:20x30 --precision fp32 --batch-size 2 --out"
    speeds = []
    for peaks in ("800,4000", "400,2000"):
        assert script.main([*words.split(), str(tmp_path), "--peaks", peaks]) == 0
        (case,) = json.loads((tmp_path / "limits.json").read_text())["cases"]
        speeds.append(case["images_per_s"])
        assert speeds[-1]["ideal"] > speeds[-1]["compiled"] > speeds[-1]["eager"] > 0
        assert "passes" not in case
    assert speeds[0]["eager"] == pytest.approx(2 * speeds[1]["eager"])


def test_convolutions_are_timed_against_measured_peaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(limits.MATRIX_SIZE, "cpu", 64)
    monkeypatch.setitem(limits.COPY_BYTES, "cpu", 1 << 20)
    clock = limits.seconds_per_call
    monkeypatch.setattr(limits, "seconds_per_call", lambda *a, **k: clock(*a, **{**k, "budget_s": 0.0}))
    words = "limits --cases 4,8:8x12 --batch-size 1 --classes 3 --precision fp32 --out"
    assert script.main([*words.split(), str(tmp_path)]) == 0
    record = json.loads((tmp_path / "limits.json").read_text())
    first, *rest = record["cases"][0]["passes"]
    assert [first["pass"], rest[0]["pass"], rest[1]["pass"]] == ["forward", "weight gradient", "forward"]
    assert all(each["of_roof"] > 0 for each in (first, *rest))
    assert Peaks(**record["peaks"]).flops > 0
    assert "encoder.0.layers.0" in capsys.readouterr().out


REPLIES = {
    "check": {"versions": {}, "loss": 1.0, "first_step_s": 3.0, "alone_images_per_s": 9.0},
    "measure": {"images": 8, "seconds": 2.0, "peak_mib": 90.0},
    "evaluate": {"images": 4, "seconds": 2.0, "peak_mib": 90.0, "confusion": [[9]]},
    "predict": {"images": 4, "seconds": 2.0, "peak_mib": 90.0, "confusion": [[9]]},
}


@pytest.mark.parametrize(
    ("program", "words", "titles"),
    [
        ("data", "--cases 32x24:16 --workers 0 2", ["32x24 crop 16 workers 0", "32x24 crop 16 workers 2"]),
        ("train", "--cases student:24x16:2 --check-steps 3", ["student:24x16:2 fp32"]),
        ("eval", "--case student:32x24:2", ["evaluation student:32x24:2 fp32", "prediction student:32x24:2"]),
    ],
)
def test_a_program_writes_numbers_and_a_chart(program, words, titles, tmp_path, monkeypatch, capsys):
    """Contenders are stand-ins here; tests/benchmarks/test_contenders.py runs the real ones."""
    module, asked = importlib.import_module(f"tests.benchmarks.{program}"), []

    def answer(function, arguments, **_):
        asked.append((function, arguments["name"]))
        return dict(REPLIES[function.split(":")[1]])

    monkeypatch.setattr(module, "run_child", answer)
    monkeypatch.setattr(train, "measure_peaks", lambda *_: Peaks(1e11, 1e10))
    for name in (train, eval):
        monkeypatch.setattr(name, "write_our_shards", lambda job: "shards")
    precision = ["--precision", "fp32"] if program != "data" else []
    where = ["--samples", "4", "--rounds", "2", "--work", str(tmp_path), "--out", str(tmp_path)]
    assert script.main([program, *words.split(), *precision, *where]) == 0
    record = json.loads((tmp_path / f"{program}.json").read_text())
    assert [case["case"] for case in record["cases"]] == titles
    for case in record["cases"]:
        assert all(row["ours_is_faster_by"]["median"] > 0 for row in case["rows"])
        assert len(case["rounds"]) == 2
    assert len(asked) == 3 * sum(len(case["rows"]) for case in record["cases"])  # one check, two rounds
    with Image.open(tmp_path / f"{program}.png") as picture:
        assert picture.width > 400
    assert titles[0] in capsys.readouterr().out
