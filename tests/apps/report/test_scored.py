import dataclasses

import numpy as np
import pytest
import torch

from tests.apps.report.runs import validation_set, write_run
from unetdist.apps.report.run import read_runs
from unetdist.apps.report.scored import class_intervals, extremes, score_run
from unetdist.errors import ConfigError
from unetdist.evaluation.metrics import PoissonBootstrap, confusion_matrix


@pytest.fixture
def run(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "x", val=validation_set(tmp_path))])
    return run


def test_each_picture_shown_is_the_one_that_was_counted(run):
    scored = score_run(run, num_workers=0)
    assert len(scored.keys) == len(scored.per_image) == 7
    for sample_id, (image, mask, pred) in zip((3, 0), scored.predict([3, 0]), strict=True):
        counted = confusion_matrix(torch.from_numpy(pred), torch.from_numpy(mask.copy()), 3)
        assert (counted.numpy() == scored.per_image[sample_id]).all()
        assert image.shape == (*mask.shape, 3)


def test_the_validation_set_may_be_another(run, tmp_path):
    elsewhere = validation_set(tmp_path / "other", 3)
    assert len(score_run(run, str(elsewhere), num_workers=0).keys) == 3


def test_a_run_without_weights_or_validation_set_cannot_be_scored(run):
    with pytest.raises(ConfigError, match="has no weights yet; wait for its first validation"):
        score_run(dataclasses.replace(run, weights=None))
    with pytest.raises(ConfigError, match=r"name no data.val; give --data SHARDS"):
        score_run(dataclasses.replace(run, settings={}))


def test_intervals_of_classes_are_those_of_the_bootstrap():
    rng = np.random.default_rng(0)
    per_image = rng.integers(0, 50, (20, 2, 2))
    two = class_intervals(per_image)
    assert ((two[:, 0] < two[:, 1]) & (two > 0).all(1) & (two < 1).all(1)).all()
    iou = np.diag(per_image.sum(0)) / (per_image.sum((0, 1)) + per_image.sum((0, 2)) - np.diag(per_image.sum(0)))
    assert ((two[:, 0] < iou) & (iou < two[:, 1])).all()
    padded = np.zeros((20, 3, 3), np.int64)
    padded[:, :1, :1] = per_image[:, :1, :1]
    padded[:, 0, 1] = 5
    bootstrap = PoissonBootstrap(3)
    for sample_id, each in enumerate(padded):
        bootstrap.add(sample_id, each)
    low, _ = class_intervals(padded)[0]
    assert 2 * bootstrap.interval()[0] == pytest.approx(low)  # the second class has IoU 0, the third is absent
    assert np.isnan(class_intervals(padded)[2]).all()


def test_worst_and_best_do_not_overlap_and_ignored_images_are_left_out(run):
    scored = score_run(run, num_workers=0)
    shares = [0.5, 0.9, 0.1, 0.0, 0.7]
    per_image = np.array([[[int(100 * s), 100 - int(100 * s), 0], [0] * 3, [0] * 3] for s in shares])
    per_image[3] = 0
    ranked = dataclasses.replace(scored, per_image=per_image)
    assert np.isnan(ranked.image_mious[3])
    assert extremes([ranked], 1) == ([2], [1])
    assert extremes([ranked], 4) == ([2, 0], [1, 4])
    worst, best = extremes([ranked, ranked], 2)
    assert not set(worst) & set(best)
