import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.data.labels import IGNORE_INDEX
from unetdist.errors import DataError
from unetdist.evaluation.metrics import PoissonBootstrap, Scores, confusion_matrix

NAMES = ("sky", "road", "car")


def random_masks(seed, shape=(4, 7, 9), num_classes=3):
    rng = np.random.default_rng(seed)
    pred = rng.integers(0, num_classes, shape)
    mask = rng.integers(0, num_classes, shape)
    mask[rng.random(shape) < 0.2] = IGNORE_INDEX
    return torch.from_numpy(pred), torch.from_numpy(mask.astype(np.uint8))


@given(seed=st.integers(0, 10**6), num_classes=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_confusion_is_a_count_pixel_by_pixel(seed, num_classes):
    pred, mask = random_masks(seed, (2, 3, 5), num_classes)
    expected = np.zeros((num_classes, num_classes), dtype=np.int64)
    for target, prediction in zip(mask.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if target != IGNORE_INDEX:
            expected[target, prediction] += 1
    confusion = confusion_matrix(pred, mask, num_classes)
    assert confusion.dtype == torch.int64
    assert np.array_equal(confusion.numpy(), expected)


def test_confusion_of_parts_adds_up():
    pred, mask = random_masks(0)
    parts = sum(confusion_matrix(pred[i], mask[i], 3) for i in range(4))
    assert torch.equal(parts, confusion_matrix(pred, mask, 3))


def test_ignored_pixels_are_not_counted_whatever_is_predicted():
    mask = torch.full((1, 2, 2), IGNORE_INDEX, dtype=torch.uint8)
    assert not confusion_matrix(torch.ones(1, 2, 2, dtype=torch.int64), mask, 2).any()


@pytest.mark.parametrize(
    ("pred", "mask", "message"),
    [
        (0, 3, "mask holds class 3, but there are 3 classes, from 0; make the data and the model"),
        (7, 0, "pred holds class 7, but there are 3 classes"),
        (-1, 0, "pred holds class -1, but there are 3 classes"),
    ],
)
def test_a_class_too_many_is_refused(pred, mask, message):
    with pytest.raises(DataError, match=message):
        confusion_matrix(torch.tensor([[[0, pred]]]), torch.tensor([[[0, mask]]], dtype=torch.uint8), 3)


def test_scores_are_the_formulas():
    confusion = np.array([[50, 5, 0], [10, 20, 5], [0, 0, 10]])
    scores = Scores.from_confusion(confusion, NAMES)
    iou = [50 / 65, 20 / 40, 10 / 15]
    assert scores.iou.tolist() == pytest.approx(iou)
    assert scores.dice.tolist() == pytest.approx([100 / 115, 40 / 60, 20 / 25])
    assert scores.precision.tolist() == pytest.approx([50 / 60, 20 / 25, 10 / 15])
    assert scores.recall.tolist() == pytest.approx([50 / 55, 20 / 35, 10 / 10])
    assert scores.miou == pytest.approx(np.mean(iou))
    assert scores.pixel_accuracy == pytest.approx(80 / 100)
    assert scores.fw_iou == pytest.approx(0.55 * iou[0] + 0.35 * iou[1] + 0.10 * iou[2])
    assert scores.absent == ()


def test_a_class_in_neither_target_nor_prediction_is_left_out_by_name():
    scores = Scores.from_confusion(np.array([[6, 0, 2], [0, 0, 0], [0, 0, 2]]), NAMES)
    assert scores.absent == ("road",)
    assert scores.miou == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert [math.isnan(ratio[1]) for ratio in (scores.iou, scores.dice, scores.precision, scores.recall)] == [True] * 4


def test_a_class_that_is_only_predicted_counts_as_0():
    scores = Scores.from_confusion(np.array([[6, 2], [0, 0]]), NAMES[:2])
    assert scores.absent == ()
    assert scores.iou.tolist() == [6 / 8, 0]
    assert scores.miou == 3 / 8
    assert scores.precision[1] == 0
    assert math.isnan(scores.recall[1])
    assert scores.fw_iou == 6 / 8


def test_all_ignored_is_nan_without_a_warning():
    scores = Scores.from_confusion(np.zeros((3, 3), dtype=np.int64), NAMES)
    assert math.isnan(scores.miou)
    assert math.isnan(scores.pixel_accuracy)
    assert math.isnan(scores.fw_iou)
    assert scores.absent == NAMES


def test_counts_are_exact_beyond_float32():
    pixels = 2**40 + 1
    scores = Scores.from_confusion(np.array([[pixels, 0], [1, pixels]]), NAMES[:2])
    assert scores.pixel_accuracy == 2 * pixels / (2 * pixels + 1) < 1


def test_record_is_json_with_none_for_nan():
    record = Scores.from_confusion(np.array([[6, 0, 2], [0, 0, 0], [0, 0, 2]]), NAMES).to_record()
    assert record["absent"] == ["road"]
    assert record["pixel_accuracy"] == 0.8
    assert record["classes"]["road"] == {"iou": None, "dice": None, "precision": None, "recall": None}
    assert record["classes"]["sky"]["iou"] == 0.75


def images(num_images, seed=0):
    """Confusions of synthetic images of differing difficulty."""
    rng = np.random.default_rng(seed)
    confusions = []
    for _ in range(num_images):
        right = rng.uniform(0.3, 1.0)
        confusion = rng.poisson(200 * (1 - right), (3, 3)) + np.diag(rng.poisson(2000 * right, 3))
        confusions.append(confusion.astype(np.int64))
    return confusions


def bootstrap_of(confusions, sample_ids, **settings):
    bootstrap = PoissonBootstrap(3, **settings)
    for sample_id in sample_ids:
        bootstrap.add(sample_id, confusions[sample_id])
    return bootstrap


@given(order=st.permutations(range(12)), num_ranks=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_bootstrap_does_not_depend_on_ranks_or_order(order, num_ranks):
    confusions = images(12)
    whole = bootstrap_of(confusions, range(12), replicates=50)
    ranks = [bootstrap_of(confusions, order[rank::num_ranks], replicates=50) for rank in range(num_ranks)]
    together = PoissonBootstrap(3, replicates=50)
    together.sums = sum(rank.sums for rank in ranks)
    assert np.array_equal(together.sums, whole.sums)
    assert together.interval() == whole.interval()


def test_bootstrap_agrees_with_drawing_images_with_replacement():
    confusions = images(60)
    low, high = bootstrap_of(confusions, range(60), replicates=4000).interval()
    rng = np.random.default_rng(1)
    stacked = np.stack(confusions)
    mious = [Scores.from_confusion(stacked[rng.integers(0, 60, 60)].sum(axis=0), NAMES).miou for _ in range(4000)]
    plain_low, plain_high = np.quantile(mious, [0.025, 0.975])
    width = plain_high - plain_low
    assert abs(low - plain_low) < 0.08 * width
    assert abs(high - plain_high) < 0.08 * width
    assert low < Scores.from_confusion(stacked.sum(axis=0), NAMES).miou < high


def test_bootstrap_draws_are_poisson_and_independent():
    num_images, replicates = 200, 300
    one_pixel = np.array([[1]])
    draws = np.empty((num_images, replicates), dtype=np.int64)
    for sample_id in range(num_images):
        bootstrap = PoissonBootstrap(1, replicates=replicates)
        bootstrap.add(sample_id, one_pixel)
        draws[sample_id] = bootstrap.sums[:, 0, 0]
    shares = np.bincount(draws.flatten(), minlength=6)[:6] / draws.size
    expected = [math.exp(-1) / math.factorial(count) for count in range(6)]
    assert np.abs(shares - expected).max() < 0.008
    for correlation in (np.corrcoef(draws), np.corrcoef(draws.T)):
        others = correlation[~np.eye(len(correlation), dtype=bool)]
        assert abs(others.mean()) < 0.01
        assert others.std() < 0.09


def test_bootstrap_seeds_differ_and_large_ids_work():
    confusions = images(1)
    sums = [bootstrap_of(confusions, [0], seed=seed, replicates=100).sums for seed in (0, 0, 1)]
    assert np.array_equal(sums[0], sums[1])
    assert not np.array_equal(sums[0], sums[2])
    PoissonBootstrap(3, replicates=2, seed=-5).add(2**40, confusions[0])


def test_bootstrap_draws_never_change():
    """A report of today must be found again by tomorrow's numpy and processor."""
    bootstrap = PoissonBootstrap(1, replicates=12, seed=7)
    bootstrap.add(123456789, np.array([[1]]))
    assert bootstrap.sums[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 2, 0]


def test_bootstrap_of_nothing_is_nan_without_a_warning():
    low, high = PoissonBootstrap(3).interval()
    assert math.isnan(low)
    assert math.isnan(high)
