import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from unetdist.evaluation.metrics import NUM_BINS, UNIT, Reliability, reliability_counts


def random_image(seed=0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(classes, 24, 31, generator=generator)
    mask = torch.randint(0, classes, (24, 31), generator=generator).to(torch.uint8)
    mask[:3] = 255
    return logits, mask


def test_the_error_is_that_of_plain_numpy():
    logits, mask = random_image()
    probability = logits.double().softmax(0).numpy()
    valid = mask.numpy() != 255
    confidence, right = probability.max(0)[valid], (probability.argmax(0) == mask.numpy())[valid]
    edges = np.linspace(0, 1, NUM_BINS + 1)
    error = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    result = Reliability.from_counts(reliability_counts(logits, mask).numpy())
    assert result.error == pytest.approx(error, abs=1e-6)
    assert result.pixels.sum() == valid.sum()


def test_counts_of_parts_add_up_and_a_bin_holds_its_upper_edge():
    logits, mask = random_image()
    parts = reliability_counts(logits[:, :7], mask[:7]) + reliability_counts(logits[:, 7:], mask[7:])
    assert parts.equal(reliability_counts(logits, mask))
    sure = reliability_counts(torch.tensor([100.0, 0]).view(2, 1, 1), torch.zeros(1, 1, dtype=torch.uint8))
    assert sure[:, -1].tolist() == [1, 1, UNIT]
    third = reliability_counts(torch.zeros(3, 1, 1), torch.zeros(1, 1, dtype=torch.uint8))
    assert third[0, 4] + third[0, 5] == 1  # a third is an edge, but for its rounding


def test_a_network_that_doubts_as_it_should_has_no_error():
    counts = np.zeros((3, NUM_BINS), np.int64)
    counts[:, 11] = 1000, 775, 775 * UNIT
    assert Reliability.from_counts(counts).error == 0
    counts[1, 11] = 700
    assert Reliability.from_counts(counts).error == pytest.approx(0.075)


def test_nothing_counted_is_none_in_json():
    empty = Reliability.from_counts(np.zeros((3, NUM_BINS), np.int64))
    assert math.isnan(empty.error)
    assert json.loads(json.dumps(empty.to_record(), allow_nan=False))["expected_calibration_error"] is None
