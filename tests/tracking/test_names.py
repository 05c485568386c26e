import numpy as np

from tests.tracking.samples import FULL_REPORT, NAMES, REPORT
from unetdist.tracking.meter import TrainStats
from unetdist.tracking.names import train_metrics, validation_metrics


def test_every_name_of_training_is_listed():
    stats = TrainStats(
        loss=1.0,
        lr=0.1,
        grad_norm=2.0,
        images_per_s=30.0,
        data_s=0.01,
        step_s=0.2,
        epoch=1.5,
        num_bad=3,
        bad_steps=2,
    )
    assert train_metrics(stats, samples_seen=48) == {
        "train/loss": 1.0,
        "train/lr": 0.1,
        "train/grad_norm": 2.0,
        "train/epoch": 1.5,
        "train/samples_seen": 48,
        "train/bad_samples": 3,
        "train/bad_steps": 2,
        "time/images_per_s": 30.0,
        "time/data_s": 0.01,
        "time/step_s": 0.2,
    }


def test_a_validation_names_each_class_under_each_ratio():
    values = validation_metrics(REPORT)
    assert values["val/iou/sky"] == 0.72
    assert values["val/recall/road"] == 0.75
    assert (values["val/miou"], values["val/miou_low"], values["val/miou_high"]) == (
        REPORT.scores.miou,
        0.6,
        0.71,
    )
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
