"""launch/benchmark.py as a user types it."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.small_shards import write_small_shards

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"

spec = importlib.util.spec_from_file_location("launch_benchmark", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_anybody_can_run_it_without_data(tmp_path, capsys):
    words = ["data", "--against", "files-pil", "--cases", "64x48:32", "--samples", "32", "--rounds", "2"]
    words += [
        "--workers",
        "none",
        "--seconds",
        "0.01",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert script.main(words) == 0
    assert "files + PIL" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "data.json").read_text())
    assert record["command"].endswith(" ".join(words[:5]) + record["command"].partition("64x48:32")[2])
    (case,) = record["cases"]
    assert [row["name"] for row in case["rows"]] == ["ours", "files-pil"]
    assert all(row["void"] is None for row in case["rows"])
    assert len(case["raw"]["rounds"]) == 2
    with Image.open(tmp_path / "out" / "data.png") as picture:
        assert picture.width > 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "480x360"], "invalid WxH:CROP value: '480x360'; use 480x360:256"),
        (["--workers", "1,0"], "invalid list of workers: '1,0'; use 1,2"),
        (["--rounds", "0"], "invalid count: '0'; use a whole number over 0"),
        (["--seconds", "0"], "invalid seconds: '0'; use a number over 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        script.make_parser().parse_args(["data", *words])
    assert message in capsys.readouterr().err


def test_shards_at_a_url_beside_the_local_ones(tmp_path, capsys):
    shards = tmp_path / "shards"
    write_small_shards(shards, [20, 0, 13])
    words = ["remote", "--local", str(shards), "--at", f"file://{shards}", "--crop", "8", "--rounds", "1"]
    assert script.main([*words, "--seconds", "0.01", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "remote.json").read_text())
    assert record["locations"] == [str(shards), f"file://{shards}"]
    assert "first batch" in capsys.readouterr().out
