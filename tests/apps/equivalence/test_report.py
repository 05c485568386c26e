"""What the user reads of a comparison."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from tests.apps.equivalence.test_compare import REFERENCE, changed
from unetdist.apps.equivalence.compare import Record, compare
from unetdist.apps.equivalence.report import ComparisonRow, render
from unetdist.apps.equivalence.worlds import runs_of

NOISE = changed(2, differences={"head.bias": 1e-6})
LONG_NAME = "ema.decoder.3.block.layers.1.norm.running_mean"
BATCH_NORM = "model.norm (batch) takes its statistics of each process's own part"


def rows_of(
    *worlds: list[dict[str, Any]], broken_by: Sequence[str] = (), again: Record = REFERENCE
) -> list[ComparisonRow]:
    """Rows of a repeat, a nudged run, and `worlds` of 2, 4, ... processes."""
    runs = runs_of([1, *(2 ** (number + 1) for number in range(len(worlds)))])[1:]
    return [
        ComparisonRow(run, compare(REFERENCE, lines, NOISE, float64=False), broken_by if run.world_size > 1 else [])
        for run, lines in zip(runs, [again, NOISE, *worlds], strict=True)
    ]


def text_of(rows: Sequence[ComparisonRow], width: int = 80, *, float64: bool = False) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render("shapes: 3 steps", rows, float64=float64))
    return console.file.getvalue()


def test_equal_worlds_are_as_promised():
    rows = rows_of(changed(3, differences={LONG_NAME: 2e-6}), REFERENCE)
    assert all(row.is_as_promised for row in rows)
    text = text_of(rows)
    assert "As promised" in text
    assert "1 again" in text
    assert "rounding only" in text
    assert text.count("bit by bit") == 2
    assert "2 processes:\n step 3 largest difference of weights: 2.0e-06:" in text
    assert LONG_NAME in text
    assert "--float64" in text
    assert "--float64" not in text_of(rows, float64=True)


def test_a_broken_promise_names_step_and_tensor():
    rows = rows_of(REFERENCE, changed(2, differences={LONG_NAME: 0.5}, **{"train/loss": 2.2}))
    assert [row.is_as_promised for row in rows] == [True, True, True, False]
    text = " ".join(text_of(rows).split())
    assert "The promise is broken" in text
    assert "DIFFERS" in text
    assert "4 processes:" in text
    assert "step 2 first difference of loss beyond rounding: 9.1e-02, allowed 1.0e-03" in text
    assert f"step 2 first difference of weights beyond rounding: 5.0e-01, allowed 1.0e-03: {LONG_NAME}" in text
    assert "2 processes:" not in text


def test_what_is_not_promised_may_differ_and_the_setting_is_named():
    rows = rows_of(changed(1, differences={LONG_NAME: 0.5}), broken_by=[BATCH_NORM])
    assert all(row.is_as_promised for row in rows)
    text = " ".join(text_of(rows).split())
    assert "may differ" in text
    assert "Equal weights are not promised" in text
    assert f"- {BATCH_NORM}" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": [[9, 9]]}, "first with other samples or pixels"),
        ({"ranks_agree": False}, "its processes have different weights"),
    ],
    ids=["samples", "ranks"],
)
def test_samples_and_agreement_are_promised_whatever_the_settings(change, words):
    rows = rows_of(changed(1, **change), broken_by=[BATCH_NORM])
    assert not rows[-1].is_as_promised
    text = " ".join(text_of(rows).split())
    assert f"step 1 {words}" in text
    assert "not only because of: - model.norm" in text


def test_a_repeat_that_differs_breaks_the_promise():
    rows = rows_of(REFERENCE, broken_by=[BATCH_NORM], again=changed(1, differences={"a": 1.0}))
    assert not rows[0].is_as_promised
    assert "1 process again:\n step 1 first difference" in text_of(rows)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    rows = rows_of(changed(1, differences={LONG_NAME: 0.5}), broken_by=[BATCH_NORM])
    assert max(map(len, text_of(rows, width).splitlines())) <= width
    assert "may differ" in text_of(rows, width)


def test_a_wrong_loss_names_the_tensor_that_differs_most():
    rows = rows_of(changed(2, differences={"head.bias": 2e-4}, **{"train/loss": 2.2}))
    assert "step 2 largest difference of weights: 2.0e-04: head.bias" in text_of(rows)
