import io
import json

import pytest
from rich.console import Console

from tests.benchmarks.report import tables, to_mapping
from tests.benchmarks.results import made_up_result, times
from tests.benchmarks.rounds import Measured

WORKERS = Measured([{"1 core": times(1000), "1 workers": times(900), "2 workers": times(1900)}])


def text_of(result):
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(tables(result))
    return console.export_text()


def test_the_table_shows_rates_ratios_and_who_is_void():
    lines = text_of(made_up_result()).splitlines()
    (ours,) = (line for line in lines if line.startswith("│ ours"))
    (files,) = (line for line in lines if "files + PIL" in line)
    assert "850" in ours
    assert "4.00" not in ours
    assert all(part in files for part in ("212", "4.00", "4.00 .. 4.00"))
    assert any("NVIDIA DALI on CPU" in line and "void" in line for line in lines)
    assert any(
        "void: NVIDIA DALI on CPU: python has no module nvidia; install: python -m pip install [dali]" in line
        for line in lines
    )


def test_what_else_was_asked_for_has_tables_too():
    result = made_up_result(
        split={"read": 25.0, "decode": 700.0, "other": 75.0},
        workers=WORKERS,
        handover={"next": [1.0, 2.0, 3.0], "next_and_copy": [2.0, 3.0, 4.0], "copy": [1.0, 1.0, 1.0]},
    )
    text = text_of(result)
    for part in ("800", "0.95", "0.90", "next and copy", "3.00", "per core, of one core alone"):
        assert part in text


def test_all_numbers_are_in_the_mapping_and_are_json():
    record = json.loads(json.dumps(to_mapping(made_up_result(workers=WORKERS)), allow_nan=False))
    ours, files, dali = record["rows"]
    assert ours["samples_per_s"] == {"median": 850, "low": 825, "high": 875}
    assert files["ours_is_faster_by"]["median"] == 4
    assert files["versions"] == {"pillow": "13"}
    assert "no module nvidia" in dali["void"]
    assert record["raw"]["rounds"][1]["files-pil"] == times(450)
    assert [row["workers"] for row in record["workers"]] == [0, 1, 2]
    assert record["workers"][2]["of_one_core_per_core"]["median"] == pytest.approx(0.95)


def test_nothing_is_compared_with_a_void_row_of_ours():
    result = made_up_result()
    result.measured.void["ours"] = "worn out"
    record = to_mapping(result)
    assert "ours_is_faster_by" not in record["rows"][1]
    assert "212" in text_of(result)
