import numpy as np

from unetdist.meter import TrainStats
from unetdist.metrics import Scores
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
    scores = Scores.from_confusion(np.array([[3, 1], [0, 4]]), ("sky", "a/b road"))
    values = validation_metrics(scores, loss=0.5, interval=(0.6, 0.9))
    assert values["val/iou/sky"] == 0.75
    assert values["val/recall/a/b road"] == 1.0
    assert (values["val/miou"], values["val/miou_low"], values["val/miou_high"]) == (scores.miou, 0.6, 0.9)
    assert len(values) == 6 + 4 * 2
