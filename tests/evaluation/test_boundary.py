import cv2
import numpy as np
import pytest
import torch

from unetdist.evaluation.boundary import BoundaryScores, boundary_counts, boundary_distance, near_boundary


def outline(binary):
    """`mask_to_boundary` of the paper's authors (github.com/bowenc0221/boundary-iou-api), word for word in effect."""
    distance = max(1, round(0.02 * np.hypot(*binary.shape)))
    padded = cv2.copyMakeBorder(binary, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return (binary - eroded[1:-1, 1:-1]).astype(bool)


def blobs(seed, height, width, num_classes=4):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (max(1, height // 15), max(1, width // 15))).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_the_authors_erosion_class_by_class(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 160, 2)
    mask, pred = blobs(seed, height, width), blobs(seed + 100, height, width)
    pred = np.where(rng.random(mask.shape) < 0.98, mask, pred)
    mask[rng.random(mask.shape) < 0.002] = 255
    counts = boundary_counts(torch.from_numpy(pred).long(), torch.from_numpy(mask), 4)
    for index in range(4):
        target = outline((mask == index).astype(np.uint8))
        found = outline(((pred == index) & (mask != 255)).astype(np.uint8))
        assert counts[:, index].tolist() == [(target & found).sum(), (target | found).sum()]
    assert counts.dtype == torch.int64


def test_the_inside_of_an_object_does_not_count():
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[20:80, 20:80] = 1
    near = near_boundary(mask, boundary_distance(100, 100))
    assert boundary_distance(100, 100) == 3
    rows = (0, 2, 3, 16, 17, 20, 22, 23)
    assert near[rows, 50].tolist() == [True, True, False, False, True, True, True, False]
    hole = mask.clone()
    hole[50, 50] = 0
    assert boundary_counts(mask.long(), mask, 2).diff(dim=0).abs().sum() == 0
    assert boundary_counts(hole.long(), mask, 2).diff(dim=0).abs().sum() > 0


def test_an_ignored_image_has_no_outline():
    mask = torch.full((9, 9), 255, dtype=torch.uint8)
    assert not boundary_counts(torch.ones(9, 9, dtype=torch.int64), mask, 2).any()


def test_scores_leave_absent_classes_out():
    scores = BoundaryScores.from_counts(np.array([[3, 0, 0], [4, 5, 0]]), ("sky", "road", "car"))
    assert scores.miou == 0.375
    assert scores.to_record() == {"boundary_miou": 0.375, "classes": {"sky": 0.75, "road": 0.0, "car": None}}
    assert BoundaryScores.from_counts(np.zeros((2, 1), int), ("sky",)).to_record()["boundary_miou"] is None
