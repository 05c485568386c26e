"""What the user reads of a comparison."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from tests.apps.equivalence.test_compare import REFERENCE, changed
from unetdist.apps.equivalence.compare import compare
from unetdist.apps.equivalence.report import ComparisonRow, EquivalenceReport, render
from unetdist.apps.equivalence.worlds import runs_of

NOISE = changed(2, differences={"head.bias": 1e-6})
LONG_NAME = "ema.decoder.3.block.layers.1.norm.running_mean"
BATCH_NORM = "model.norm (batch) takes its statistics of each process's own part"


def report_of(*worlds: list[dict[str, Any]], broken_by: Sequence[str] = (), float64: bool = False) -> EquivalenceReport:
    """Of a repeat, a nudged run, and `worlds` of 2, 4, ... processes."""
    runs = runs_of([1, *(2 ** (number + 1) for number in range(len(worlds)))])[1:]
    records = [REFERENCE, NOISE, *worlds]
    rows = [
        ComparisonRow(run, compare(REFERENCE, lines, NOISE, float64=float64), broken_by if run.world_size > 1 else [])
        for run, lines in zip(runs, records, strict=True)
    ]
    return EquivalenceReport(title="shapes: 3 steps", rows=rows, float64=float64)


def text_of(report: EquivalenceReport, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render(report))
    return console.file.getvalue()


def test_equal_worlds_are_as_promised():
    report = report_of(changed(3, differences={LONG_NAME: 2e-6}), REFERENCE)
    assert report.is_as_promised
    text = text_of(report)
    assert "As promised" in text
    assert "1 again" in text
    assert "rounding only" in text
    assert "2 processes: largest difference of weights:" in text
    assert f"step 3 2.0e-06: {LONG_NAME}" in text
    assert "--float64" in text
    assert "--float64" not in text_of(report_of(REFERENCE, float64=True))


def test_a_broken_promise_names_step_and_tensor():
    report = report_of(REFERENCE, changed(2, differences={LONG_NAME: 0.5}, **{"train/loss": 2.2}))
    assert not report.is_as_promised
    text = text_of(report)
    assert "The promise is broken" in text
    assert "DIFFERS" in text
    assert "4 processes: first difference beyond rounding:" in text
    assert "step 2 loss: difference 9.1e-02, allowed 1.0e-03" in text
    assert "step 2 weights: difference 5.0e-01, allowed 1.0e-03" in text
    assert LONG_NAME in text
    assert "2 processes:" not in text


def test_what_is_not_promised_may_differ_and_the_setting_is_named():
    report = report_of(changed(1, differences={LONG_NAME: 0.5}), broken_by=[BATCH_NORM])
    assert report.is_as_promised
    text = " ".join(text_of(report).split())
    assert "may differ" in text
    assert "Equal weights are not promised" in text
    assert f"- {BATCH_NORM}" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": [[9, 9]]}, "other samples or pixels"),
        ({"ranks_agree": False}, "its processes have different weights"),
    ],
    ids=["samples", "ranks"],
)
def test_samples_and_agreement_are_promised_whatever_the_settings(change, words):
    report = report_of(changed(1, **change), broken_by=[BATCH_NORM])
    assert not report.is_as_promised
    text = " ".join(text_of(report).split())
    assert f"step 1 {words}" in text
    assert "not only because of: - model.norm" in text


def test_a_repeat_that_differs_breaks_the_promise():
    report = report_of(REFERENCE, broken_by=[BATCH_NORM])
    again = report.rows[0]
    other = ComparisonRow(again.run, compare(REFERENCE, changed(1, differences={"a": 1.0}), NOISE, float64=False), [])
    broken = EquivalenceReport(title=report.title, rows=[other, *report.rows[1:]], float64=False)
    assert not broken.is_as_promised
    assert "1 process again: first difference" in text_of(broken)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    report = report_of(changed(1, differences={LONG_NAME: 0.5}), broken_by=[BATCH_NORM])
    assert max(map(len, text_of(report, width).splitlines())) <= width
    assert "may differ" in text_of(report, width)


def test_a_wrong_loss_names_the_tensor_that_is_furthest_apart_then():
    report = report_of(changed(2, differences={"head.bias": 2e-4}, **{"train/loss": 2.2}))
    assert "step 2 largest difference of weights 2.0e-04: head.bias" in text_of(report)
