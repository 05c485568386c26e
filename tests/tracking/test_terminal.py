from dataclasses import replace

import numpy as np
from rich.console import Console

from tests.tracking.samples import FULL_REPORT, MEASURED, NAMES, REPORT
from unetdist.evaluation.comparison import Comparison
from unetdist.evaluation.metrics import Scores
from unetdist.tracking.terminal import comparison_table, scores_table, train_note


def text_of(confusion, names=NAMES, is_best=False):
    report = replace(REPORT, confusion=confusion, scores=Scores.from_confusion(confusion, names))
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(scores_table(report, of="step 30", is_best=is_best))
        return console.export_text()


def test_a_line_per_class_in_percent():
    text = text_of(REPORT.confusion, is_best=True)
    assert "step 30: mIoU 70.1 % (95 % interval 60.0 .. 71.0), best so far" in text
    assert "loss 0.2500, pixel accuracy 82.5 %; absent, not in mIoU: tree" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["sky", "72.0", "83.7", "78.3", "90.0", "50.0"],
        ["road", "68.2", "81.1", "88.2", "75.0", "50.0"],
        ["tree", "-", "-", "-", "-", "0.0"],
    ]


def test_nothing_absent_and_not_the_best():
    text = text_of(np.eye(3, dtype=np.int64))
    assert "best" not in text
    assert "absent" not in text


def test_the_loss_is_called_what_it_is():
    table = scores_table(REPORT, of="val", loss_name="cross entropy")
    assert str(table.caption).startswith("cross entropy 0.2500, pixel accuracy")


def test_class_names_are_no_markup():
    assert "[red]" in text_of(np.eye(2, dtype=np.int64), names=("[red]", "a"))


def test_note_is_short_and_says_what_is_slow():
    assert train_note(MEASURED) == "loss 0.5000, 12.5 images/s, data wait 25 %"
    assert train_note({**MEASURED, "train/bad_samples": 3.0}).endswith("3 bad samples")
    assert train_note({**MEASURED, "train/bad_steps": 3}).endswith("3 skipped steps")
    assert "wait" not in train_note({**MEASURED, "time/step_s": 0.0})


def test_outlines_and_confidence_are_told_where_they_were_scored():
    table = scores_table(FULL_REPORT, of="val")
    assert ", expected calibration error 82.50 %; absent" in str(table.caption)
    assert str(table.title).endswith(", boundary mIoU 37.5 %")
    assert list(table.columns[2].cells) == ["50.0", "25.0", "-"]
    assert table.columns[2].header == "boundary IoU %"


def test_two_models_and_their_difference():
    comparison = Comparison(0.5, (0.4, 0.6), 0.525, (0.45, 0.61), (-0.001, 0.051), 0.0601, 12)
    table = comparison_table(comparison, ("runs/[a]", "runs/b"), of="val")
    assert table.title == "val: 12 images, p = 0.0601"
    assert [list(column.cells) for column in table.columns] == [
        [r"A: runs/\[a]", "B: runs/b", "B - A"],
        ["50.0", "52.5", "+2.50"],
        ["40.00 .. 60.00", "45.00 .. 61.00", "-0.10 .. 5.10"],
    ]
