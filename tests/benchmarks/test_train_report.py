import io
import json

import pytest
from rich.console import Console

from tests.benchmarks.train import TrainCase
from tests.benchmarks.train_report import Limit, panel, tables, to_mapping
from tests.benchmarks.train_results import LIMITS, made_up_training
from unetdist.model.limit import H200


def test_numbers_for_the_record():
    record = json.loads(json.dumps(to_mapping(made_up_training(), LIMITS)))
    ours, careful, lightning = record["rows"]
    assert ours["images_per_s"]["median"] == 600
    assert careful["ours_is_faster_by"]["median"] == 1.5
    assert ours["share_of_limit"] == pytest.approx(600 / LIMITS["bf16"].images_per_s)
    assert ours["flops_utilisation"] == pytest.approx(600 * 1156e9 / 788e12, rel=1e-3)
    assert lightning["void"].startswith("python has no module lightning")
    assert "images_per_s" not in lightning
    assert record["limits"]["bf16"]["images_per_s"] == pytest.approx(634, rel=0.05)
    assert len(record["raw"]["rounds"]) == 3


def test_in_float32_there_are_more_bytes():
    case = TrainCase("student", 480, 352, 32)
    assert Limit.of(case, 12, "fp32", H200).images_per_s < Limit.of(case, 12, "bf16", H200).images_per_s


def test_the_table_says_what_is_void_and_why():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables(made_up_training(), LIMITS))
    text = console.export_text()
    assert "classic U-Net, 512x512, batch 32: images/s of training" in text
    assert "careful [user]" in text
    assert "1.50" in text
    assert "void: Lightning bf16: python has no module lightning; install:" in text
    assert "peaks 788 TFLOP/s and 4300 GB/s; 1156.2 GFLOP per image" in text


def test_the_chart_has_a_bar_for_each():
    picture = panel(made_up_training(), LIMITS)
    assert picture.width > 600
    assert len({color for _, color in picture.getcolors(1 << 16)} & {(31, 119, 180), (176, 190, 205)}) == 2
