import json
import math

import numpy as np
import pytest

from unetdist.errors import ConfigError
from unetdist.evaluation.comparison import compare
from unetdist.evaluation.metrics import Scores

TARGETS = np.array([900, 300, 60])


def images(seed, share, num_images=40):
    """Confusions (N, 3, 3): of every class, `share` of the pixels right on average, the others the next class."""
    rng = np.random.default_rng(seed)
    targets = np.random.default_rng(0).poisson(TARGETS, (num_images, 3))
    right = rng.binomial(targets, np.clip(rng.normal(share, 0.05, (num_images, 1)), 0, 1))
    confusions = np.zeros((num_images, 3, 3), np.int64)
    for index in range(3):
        confusions[:, index, index] = right[:, index]
        confusions[:, index, (index + 1) % 3] = (targets - right)[:, index]
    return confusions


def test_a_better_model_is_told_from_a_worse_one():
    a, b = images(1, 0.8), images(2, 0.85)
    result = compare(a, b)
    for miou, confusions in ((result.miou_a, a), (result.miou_b, b)):
        assert miou == Scores.from_confusion(confusions.sum(0), ("x", "y", "z")).miou
    assert 0 < result.interval_difference[0] < result.difference < result.interval_difference[1]
    assert result.interval_a[0] < result.miou_a < result.interval_a[1]
    assert result.p_value <= 0.001
    assert compare(b, a).difference == -result.difference
    assert compare(b, a).p_value == result.p_value


def test_the_interval_of_the_difference_is_paired():
    """Images that are hard for both make each mIoU uncertain, and their difference not."""
    hard = np.random.default_rng(5).uniform(0.3, 1, (30, 1))
    targets = np.broadcast_to(TARGETS, (30, 3))
    a = np.zeros((30, 3, 3), np.int64)
    right = (targets * hard).astype(int)
    for index in range(3):
        a[:, index, index], a[:, index, index - 1] = right[:, index], (targets - right)[:, index]
    b = a.copy()
    b[:, 0, 0] -= 9
    b[:, 0, 1] += 9
    result = compare(a, b)
    width = np.diff(result.interval_difference)[0]
    assert width < 0.1 * np.diff(result.interval_a)[0]
    assert result.interval_difference[1] < 0
    assert result.p_value < 0.001


def test_a_model_is_no_better_than_itself():
    a = images(1, 0.8)
    result = compare(a, a)
    assert result.difference == 0
    assert result.interval_difference == (0, 0)
    assert result.p_value == 1


@pytest.mark.parametrize("level", [0.1, 0.3])
def test_of_models_that_are_alike_few_are_told_apart(level, monkeypatch):
    """The share of false alarms is the level: 120 pairs, within four standard errors."""
    monkeypatch.setattr("unetdist.evaluation.comparison.SWAPS", 199)
    alarms = sum(
        compare(images(2 * i, 0.8, 12), images(2 * i + 1, 0.8, 12), replicates=1, seed=i).p_value <= level
        for i in range(120)
    )
    assert abs(alarms / 120 - level) < 4 * math.sqrt(level * (1 - level) / 120)


def test_the_test_is_the_sum_over_all_swaps_of_few_images():
    """Four images have 16 assignments, which can all be counted."""
    a, b = images(3, 0.8, 4), images(4, 0.83, 4)

    def difference(swapped):
        left = np.where(swapped[:, None, None], b, a).sum(0)
        right = np.where(swapped[:, None, None], a, b).sum(0)
        return Scores.from_confusion(right, "xyz").miou - Scores.from_confusion(left, "xyz").miou

    observed = abs(difference(np.zeros(4, bool)))
    every = [abs(difference(np.array(list(np.binary_repr(i, 4))) == "1")) for i in range(16)]
    exact = np.mean(np.array(every) >= observed)
    assert compare(a, b).p_value == pytest.approx(exact, abs=0.02)


def test_blocks_do_not_matter(monkeypatch):
    a, b = images(1, 0.8), images(2, 0.81)
    whole = compare(a, b)
    monkeypatch.setattr("unetdist.evaluation.comparison.BLOCK", 40 * 777)
    assert compare(a, b) == whole


def test_other_masks_are_refused():
    a = images(1, 0.8)
    with pytest.raises(ConfigError, match="not scored on the same masks, .*; score both on the same shards"):
        compare(a, a[:-1])
    with pytest.raises(ConfigError, match="not scored on the same masks"):
        compare(a, a[::-1])


def test_nothing_to_compare_is_none_in_json():
    nothing = np.zeros((2, 3, 3), np.int64)
    mapping = json.loads(json.dumps(compare(nothing, nothing).to_mapping(), allow_nan=False))
    assert mapping["difference"] is mapping["p_value"] is mapping["difference_interval_95"] is None
    assert mapping["num_samples"] == 2
