import argparse
import json

import pytest

from tests.benchmarks import __main__ as benchmark
from tests.benchmarks.limit_command import parse_limit_case, parse_peaks
from unetdist.model.limit import Peaks


def test_limits_are_printed_and_written(tmp_path, capsys):
    assert benchmark.main(["limit", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "limit.json").read_text())
    assert record["peaks"] == {"flops": 788e12, "bandwidth": 4.3e12}
    assert [round(case["gflop_per_image"]) for case in record["cases"]] == [1156, 745, 290, 73, 47]
    assert record["cases"][0]["images_per_s"]["ideal"] == pytest.approx(634, rel=0.015)
    assert "64-128-256-512-1024" in capsys.readouterr().out


def test_half_the_peaks_are_half_the_speed(tmp_path):
    speeds = []
    for number, peaks in enumerate(("800,4000", "400,2000")):
        words = [
            "limit",
            "--cases",
            "4,8:20x30",
            "--peaks",
            peaks,
            "--precision",
            "fp32",
            "--batch-size",
            "2",
        ]
        assert benchmark.main([*words, "--out", str(tmp_path / str(number))]) == 0
        (case,) = json.loads((tmp_path / str(number) / "limit.json").read_text())["cases"]
        assert (case["widths"], case["size"]) == ([4, 8], [20, 30])
        speeds.append(case["images_per_s"]["eager"])
    assert speeds[0] == pytest.approx(2 * speeds[1])


def test_a_case_is_widths_and_a_size():
    config, size = parse_limit_case("16:352x480")
    assert (config.level_widths, size) == ((16, 32, 64, 128, 256), (352, 480))
    assert parse_limit_case("5,7:8x9")[0].level_widths == (5, 7)
    assert parse_peaks("1.5,2e3") == Peaks(1.5e12, 2e12)


@pytest.mark.parametrize("text", ["16", "16:352", "0:8x8", "16,:8x8", "a:8x8"])
def test_a_case_that_makes_no_sense_is_refused(text):
    message = rf"invalid WIDTHS:HxW value: '{text}'; use 16:352x480 or 16,32,64:352x480"
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse_limit_case(text)


@pytest.mark.parametrize("text", ["788", "0,4300", "788,inf", "nan,1", "a,b", "1,2,3"])
def test_peaks_that_make_no_sense_are_refused(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match=rf"invalid TFLOP/s,GB/s value: '{text}'; use 788,4300"
    ):
        parse_peaks(text)
