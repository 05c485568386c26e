import math
import time

import numpy as np
import pytest
import torch

from tests.tracking.samples import FULL_REPORT, MEASURED, NAMES, REPORT
from unetdist.distributed.collectives import World
from unetdist.tracking.meter import Meter, dashboard_values, validation_metrics

GOOD = torch.tensor(False)
"""What `is_bad` says of a good step."""


def read(meter, **given):
    values = {"lr": 0.0, "grad_norm": torch.tensor(0.0), "global_batch_size": 1, "epoch": 0.0, "bad_steps": 0}
    return meter.read(**{**values, **given})


def test_losses_are_summed_and_divided_by_steps():
    meter = Meter(World())
    for losses in ((1.0, 2.0), (3.0, 4.0)):  # two steps of two micro-batches
        meter.add([*map(torch.tensor, losses)], GOOD, num_bad=2)
    values = read(meter, lr=0.1, grad_norm=torch.tensor(2.0), global_batch_size=8, epoch=1.5, bad_steps=2)
    step_s = values.pop("time/step_s")
    assert values.pop("time/images_per_s") == pytest.approx(8 / step_s)
    assert values == {
        "train/loss": 5.0,
        "train/lr": 0.1,
        "train/grad_norm": 2.0,
        "train/epoch": 1.5,
        "train/bad_samples": 4,
        "train/bad_steps": 2,
        "time/data_s": 0.0,
    }
    meter.add([torch.tensor(1.0)], GOOD, num_bad=0)
    assert read(meter, is_compiled=True)["time/is_compiled"] == 1.0


def test_reading_restarts():
    meter = Meter(World())
    meter.add([torch.tensor(7.0)], GOOD, num_bad=0)
    read(meter)
    meter.add([torch.tensor(1.0)], GOOD, num_bad=0)
    assert read(meter)["train/loss"] == 1.0


def test_skipped_steps_are_no_part_of_the_loss():
    meter = Meter(World())
    meter.add([torch.tensor(3.0)], GOOD, num_bad=0)
    meter.add([torch.tensor(math.nan), torch.tensor(1.0)], ~GOOD, num_bad=0)
    assert read(meter, bad_steps=7)["train/loss"] == 3.0
    meter.add([torch.tensor(math.inf)], ~GOOD, num_bad=0)
    values = read(meter, bad_steps=8)
    assert math.isnan(values["train/loss"])
    assert values["train/bad_steps"] == 8


def test_only_the_wait_for_an_item_is_data_time():
    def slow():
        for item in range(2):
            time.sleep(0.02)
            yield item

    meter = Meter(World())
    for _ in meter.timed(slow()):
        time.sleep(0.05)
        meter.add([torch.tensor(1.0)], GOOD, num_bad=0)
    values = read(meter)
    assert 0.02 <= values["time/data_s"] < values["time/step_s"] - 0.04


def test_a_validation_names_each_class_under_each_ratio():
    values = validation_metrics(REPORT)
    assert values["val/iou/sky"] == 0.72
    assert values["val/recall/road"] == 0.75
    assert (values["val/miou"], values["val/miou_low"], values["val/miou_high"]) == (REPORT.scores.miou, 0.6, 0.71)
    assert len(values) == 6 + 4 * len(NAMES)


def test_outlines_and_confidence_are_named_where_they_were_scored():
    more = validation_metrics(FULL_REPORT).items() - validation_metrics(REPORT).items()
    named = {name: value for name, value in more if not np.isnan(value)}
    assert named == {
        "val/boundary_iou/sky": 0.5,
        "val/boundary_iou/road": 0.25,
        "val/boundary_miou": 0.375,
        "val/calibration_error": 0.825,
    }


def test_the_first_groups_of_a_dashboard_are_the_training_and_the_scores_of_the_whole_set():
    values = dashboard_values(
        {**MEASURED, "train/samples_seen": 8, "time/hours": 1.0, **validation_metrics(FULL_REPORT)}
    )
    groups = {}
    for name in values:
        group, _, rest = name.partition("/")
        groups.setdefault(group, set()).add(rest)
    assert sorted(groups)[:2] == ["train", "val"]
    assert sorted(groups)[-1] == "work"
    assert groups["train"] == {"loss", "lr", "grad_norm", "images_per_s"}
    assert {"loss", "miou"} < groups["val"]
    assert not groups["val"] & {*NAMES}
    assert groups["val_iou"] == groups["val_boundary_iou"] == {*NAMES}
    assert groups["work"] == {"epoch", "samples_seen", "data_s", "step_s", "hours"}
    assert values["val_iou/sky"] == 0.72


def test_a_dashboard_gets_counts_of_bad_steps_once_there_are_some():
    counts = {"train/bad_samples": 0, "train/bad_steps": 2, "train/lr": 0.0}
    assert dashboard_values(counts) == {"work/bad_steps": 2, "train/lr": 0.0}
