import numpy as np
import pytest
import torch

from unetdist.errors import ConfigError
from unetdist.model.class_weights import class_weights

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
    weights = class_weights(rule, num_classes=4, class_pixels=CLASS_PIXELS, presence_pixels=PRESENCE_PIXELS)
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_median_of_an_even_number_is_between_the_middle_two():
    weights = class_weights(
        "median_frequency", num_classes=2, class_pixels=[10, 30], presence_pixels=[100, 100]
    )
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])


@pytest.mark.parametrize("rule", [(1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("inf"), 1.0)])
def test_a_list_of_weights_that_does_not_fit_is_refused(rule):
    with pytest.raises(ConfigError, match=r"class_weights \(\[.*\]\) must be 3 numbers .*; use such"):
        class_weights(rule, num_classes=3)


@pytest.mark.parametrize("class_pixels", [None, [0, 0, 0], [1, 2]])
def test_a_rule_without_pixels_to_go_by_is_refused(class_pixels):
    with pytest.raises(ConfigError, match=r"class_weights \(enet\) must have pixel counts of 3 .*; use"):
        class_weights("enet", num_classes=3, class_pixels=class_pixels, presence_pixels=class_pixels)
