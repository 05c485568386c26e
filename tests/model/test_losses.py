from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.no_copies import NoCopies
from unetdist.data.labels import IGNORE_INDEX
from unetdist.errors import ConfigError
from unetdist.model.config import LossConfig
from unetdist.model.losses import Loss, build_loss, class_weights, dice_sum, focal_sum, lovasz_sum

NUM_CLASSES = 4
WEIGHTS = (0.5, 2.0, 1.0, 0.25)
TERMS = {
    "ce": {},
    "ce, smoothed": {"label_smoothing": 0.1},
    "dice": {"ce_weight": 0.0, "dice_weight": 1.0},
    "focal": {"ce_weight": 0.0, "focal_weight": 1.0},
    "lovasz": {"ce_weight": 0.0, "lovasz_weight": 1.0},
    "all": {"dice_weight": 0.5, "focal_weight": 0.3, "lovasz_weight": 2.0, "label_smoothing": 0.05},
}


def batch(num_images, *, seed=0, size=(5, 6), ignored=0.4):
    """Logits and masks with ever more ignored pixels; the last image has none but those."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, NUM_CLASSES, *size, dtype=torch.float64, generator=generator)
    mask = torch.randint(0, NUM_CLASSES - 1, (num_images, *size), generator=generator)  # the last is absent
    share = torch.linspace(0, 2 * ignored, num_images).view(-1, 1, 1)
    mask[torch.rand(num_images, *size, generator=generator) < share] = IGNORE_INDEX
    mask[-1] = IGNORE_INDEX
    return logits, mask.to(torch.uint8)


def count(mask, num_classes=NUM_CLASSES):
    return Loss.counts(torch.stack([(mask == index).sum(dim=(1, 2)) for index in range(num_classes)], dim=1))


def make_loss(**settings):
    return build_loss(LossConfig(**{"class_weights": WEIGHTS} | settings), num_classes=NUM_CLASSES)


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
def test_nothing_moves_between_host_and_device(settings_):
    """On CUDA such a copy waits for the device; the meta device stands in for it, where a read-back raises."""
    logits, mask = batch(3)
    class_pixels = count(mask).to("meta")
    logits, mask = logits.to("meta").requires_grad_(), mask.to("meta")
    loss = make_loss(**settings_).to("meta")
    with NoCopies():
        loss(logits, mask, loss.denominators(class_pixels)).backward()


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 7)), seed=st.integers(0, 10**6), supervised=st.booleans())
@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
def test_shares_of_any_split_add_up(settings_, cuts, seed, supervised):
    """A cut may leave a rank with ignored pixels only: the last image is such a rank for cut 7."""
    loss = make_loss(**settings_)
    logits, mask = batch(8, seed=seed)
    denominators = loss.denominators(count(mask))

    def outputs(x):
        return [x, x * 0.5 + 1, x.sin()] if supervised else x

    whole_logits = logits.clone().requires_grad_()
    whole = loss(outputs(whole_logits), mask, denominators)
    whole.backward()

    parts_logits = logits.clone().requires_grad_()
    total, counted = 0.0, torch.zeros(NUM_CLASSES + 1, dtype=torch.int64)
    for begin, end in pairwise([0, *sorted(cuts), 8]):
        part = slice(begin, end)
        counted += count(mask[part])
        share = loss(outputs(parts_logits[part]), mask[part], denominators)
        share.backward()
        total += share.item()
    assert loss.denominators(counted).equal(denominators)
    assert total == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(parts_logits.grad, whole_logits.grad, rtol=0, atol=1e-12)
    assert whole_logits.grad.abs().sum() > 0


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs_mean(label_smoothing):
    logits, mask = batch(4)
    loss = make_loss(label_smoothing=label_smoothing)
    expected = F.cross_entropy(
        logits,
        mask.long(),
        torch.tensor(WEIGHTS, dtype=torch.float64),
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(loss(logits, mask, loss.denominators(count(mask))), expected, rtol=1e-13, atol=0)


def test_units_count_weighted_pixels_and_images_with_a_valid_one():
    class_pixels = torch.tensor([[3, 0, 1, 0], [0, 0, 0, 0], [0, 2, 0, 4]])
    counts = Loss.counts(class_pixels)
    assert counts.tolist() == [3, 2, 1, 4, 2]
    denominators = make_loss().denominators(counts)
    assert denominators.dtype == torch.float64
    assert denominators.tolist() == [3 * 0.5 + 2 * 2.0 + 1 * 1.0 + 4 * 0.25, 2]


def test_sums_over_units_are_the_loss():
    loss = make_loss(**TERMS["all"])
    logits, mask = batch(3)
    denominators = loss.denominators(count(mask))
    torch.testing.assert_close((loss.sums(logits, mask) / denominators).sum(), loss(logits, mask, denominators))


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("others_have_pixels", [True, False])
def test_ignored_pixels_only_add_nothing(settings_, others_have_pixels):
    loss = make_loss(**settings_)
    logits = torch.randn(2, NUM_CLASSES, 3, 3, requires_grad=True)
    mask = torch.full((2, 3, 3), IGNORE_INDEX, dtype=torch.uint8)
    denominators = torch.tensor([10.0, 2.0] if others_have_pixels else [0.0, 0.0], dtype=torch.float64)
    share = loss(logits, mask, denominators)
    share.backward()
    assert share.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_batch_of_weightless_classes_adds_nothing():
    """Smoothing asks such pixels for the other classes too, which no unit counts."""
    loss = build_loss(LossConfig(class_weights=(0.0, 1.0), label_smoothing=0.1), num_classes=2)
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    mask = torch.zeros(1, 3, 3, dtype=torch.uint8)
    share = loss(logits, mask, loss.denominators(count(mask, num_classes=2)))
    share.backward()
    assert share.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
def test_ignored_pixels_do_not_matter(settings_):
    loss = make_loss(**settings_)
    logits, mask = batch(3)
    denominators = loss.denominators(count(mask))
    changed = torch.where((mask == IGNORE_INDEX)[:, None], logits * 3 + 1, logits)
    torch.testing.assert_close(loss(changed, mask, denominators), loss(logits, mask, denominators), rtol=1e-13, atol=0)


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
def test_gradient_is_that_of_finite_differences(settings_):
    loss = make_loss(**settings_)
    logits, mask = batch(2, size=(2, 3))
    denominators = loss.denominators(count(mask))
    assert torch.autograd.gradcheck(lambda x: loss(x, mask, denominators), logits.requires_grad_())


@pytest.mark.parametrize("term", ["ce", "dice", "focal", "lovasz"])
def test_right_answers_cost_nothing_and_wrong_ones_do(term):
    loss = make_loss(**TERMS[term])
    _, mask = batch(3)
    denominators = loss.denominators(count(mask))
    target = torch.where(mask == IGNORE_INDEX, 0, mask).long()
    right = 100 * F.one_hot(target, NUM_CLASSES).movedim(-1, 1).float()
    assert loss(right, mask, denominators).item() == pytest.approx(0, abs=1e-6)
    assert loss(right.roll(1, dims=1), mask, denominators).item() > 0.5


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(settings_, dtype):
    """90,000 pixels: a half precision sum would stop growing long before."""
    loss = make_loss(**settings_)
    logits, mask = batch(2, size=(300, 300), ignored=0.1)
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        share = loss(half, mask, loss.denominators(count(mask)))
    assert share.dtype == torch.float32
    exact = loss(half.double(), mask, loss.denominators(count(mask)))
    assert share.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("settings_", TERMS.values(), ids=TERMS)
def test_extreme_logits_stay_finite(settings_):
    loss = make_loss(**settings_ | {"focal_gamma": 0.5})
    logits, mask = batch(2)
    logits = (logits.float() * 1e4).requires_grad_()
    share = loss(logits, mask, loss.denominators(count(mask)))
    share.backward()
    assert share.isfinite()
    assert logits.grad.isfinite().all()


def test_deep_supervision_halves_the_weight_of_each_level():
    loss = make_loss(**TERMS["all"])
    _, mask = batch(3)
    levels = [batch(3, seed=seed)[0] for seed in range(3)]
    denominators = loss.denominators(count(mask))
    fine, middle, coarse = (loss(level, mask, denominators) for level in levels)
    torch.testing.assert_close(loss(levels, mask, denominators), (4 * fine + 2 * middle + coarse) / 7)


def test_compiles_to_one_graph():
    """A break in the graph would be a value that Python waits for."""
    loss = make_loss(**TERMS["all"])
    logits, mask = batch(2)
    denominators = loss.denominators(count(mask))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, mask, denominators), loss(logits, mask, denominators))


def test_focal_is_cross_entropy_at_gamma_0_and_the_formula_at_2():
    logits, mask = batch(3)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    ce = F.cross_entropy(logits, mask.long(), weights, ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(focal_sum(logits, mask, weights, 0.0), ce)
    expected = 0.0
    probability = logits.softmax(dim=1)
    for image, row, column in np.argwhere(mask.numpy() != IGNORE_INDEX):
        target = int(mask[image, row, column])
        p = probability[image, target, row, column].item()
        expected -= WEIGHTS[target] * (1 - p) ** 2 * np.log(p)
    assert focal_sum(logits, mask, weights, 2.0).item() == pytest.approx(expected, rel=1e-12)


def test_dice_is_the_formula():
    logits, mask = batch(4)
    expected = 0.0
    for scores, target in zip(logits.softmax(dim=1), mask, strict=True):
        valid = target != IGNORE_INDEX
        dice = []
        for index in target[valid].unique().tolist():
            p, y = scores[index][valid], (target[valid] == index).double()
            dice.append((2 * (p * y).sum() / (p.sum() + y.sum())).item())
        expected += 1 - np.mean(dice) if dice else 0.0
    assert dice_sum(logits, mask).item() == pytest.approx(expected, rel=1e-12)


def berman_lovasz_softmax(probability, target):
    """Of one image, (P, C) and (P,), as in the authors' repository (bermanmaxim/LovaszSoftmax)."""
    losses = []
    for index in target.unique().tolist():
        foreground = (target == index).double()
        errors, order = (foreground - probability[:, index]).abs().sort(descending=True)
        foreground = foreground[order]
        total = foreground.sum()
        jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(errors @ jaccard)
    return sum(losses) / max(len(losses), 1)


def test_lovasz_is_the_authors():
    logits, mask = batch(4)
    expected = 0.0
    for scores, target in zip(logits.softmax(dim=1), mask, strict=True):
        valid = target != IGNORE_INDEX
        expected += float(berman_lovasz_softmax(scores[:, valid].T, target[valid]))
    assert lovasz_sum(logits, mask).item() == pytest.approx(expected, rel=1e-12)


def test_lovasz_of_a_hard_prediction_is_1_minus_iou():
    mask = torch.tensor([[[0, 0, 1, 1, 1, 2]]], dtype=torch.uint8)
    pred = torch.tensor([[[0, 1, 1, 1, 2, 2]]])
    logits = 1000 * F.one_hot(pred, NUM_CLASSES).movedim(-1, 1).double()
    assert lovasz_sum(logits, mask).item() == pytest.approx(1 - (1 / 2 + 2 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"ce_weight": -1.0}, r"ce_weight \(-1.0\) must be a number of at least 0; use 0 or 1"),
        ({"focal_gamma": float("nan")}, r"focal_gamma \(nan\) must be a number of at least 0"),
        ({"ce_weight": 0.0}, r"ce_weight \(0\) must be above 0 if no other term is; use ce_weight: 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(1.0\) must be at least 0 and below 1; use 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings_)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_one_class_beside_ignored_pixels_is_refused_for_nothing_would_be_learnt(terms):
    with pytest.raises(ConfigError, match=r"the data has 1 class .*gradient would be 0.*at least 2 classes"):
        build_loss(LossConfig(**terms), num_classes=1, class_pixels=[9], presence_pixels=[9])
    logits = torch.randn(1, 1, 2, 2, requires_grad=True)
    mask = torch.tensor([[[0, 0], [0, IGNORE_INDEX]]], dtype=torch.uint8)
    alone = Loss(LossConfig(**terms), torch.ones(1))
    loss = alone(logits, mask, alone.denominators(count(mask, num_classes=1)))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


CLASS_PIXELS, PRESENCE_PIXELS = [600, 300, 100, 0], [1000, 500, 400, 0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        # Frequencies .6, .6, .25: the median is .6.
        ("median_frequency", [1, 1, 0.6 / 0.25, 0]),
        ("sqrt_median_frequency", [1, 1, (0.6 / 0.25) ** 0.5, 0]),
        ("inverse", [1000 / 1800, 1000 / 900, 1000 / 300, 0]),
        ("enet", [1 / np.log(1.62), 1 / np.log(1.32), 1 / np.log(1.12), 0]),
        ((0.0, 1.0, 2.0, 0.5), [0, 1, 2, 0.5]),
    ],
)
def test_class_weights_are_the_formulas(rule, expected):
    loss = build_loss(
        LossConfig(class_weights=rule), num_classes=4, class_pixels=CLASS_PIXELS, presence_pixels=PRESENCE_PIXELS
    )
    assert loss.class_weights.dtype == torch.float64
    assert loss.class_weights.tolist() == pytest.approx(expected, rel=1e-12)
    assert not loss.state_dict()


def test_the_median_of_an_even_number_is_between_the_middle_two():
    assert class_weights("median_frequency", [10, 30], [100, 100]).tolist() == pytest.approx([2.0, 2 / 3])


@pytest.mark.parametrize("rule", [(1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("inf"), 1.0)])
def test_a_list_of_weights_that_does_not_fit_is_refused(rule):
    with pytest.raises(ConfigError, match=r"class_weights \(\[.*\]\) must be 3 numbers .*; use such"):
        build_loss(LossConfig(class_weights=rule), num_classes=3)
