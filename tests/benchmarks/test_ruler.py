import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.ruler import NUM_PICTURES, pairing_problem, shape_problem, write_ruler

CROP, BATCH = 48, 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(image, mask) pairs as they are read from the files."""
    folder = tmp_path_factory.mktemp("ruler")
    write_ruler(folder, (96, 128))
    pairs = []
    for number in range(NUM_PICTURES):
        image, mask = folder / "images" / f"{number:05d}.jpg", folder / "masks" / f"{number:05d}.png"
        pairs.append((np.array(Image.open(image)), np.array(Image.open(mask))))
    return pairs


def batches(pictures, *, shift=0, swap=False, same_column=False, never_flip=False, one_picture=False):
    """(4, 8, 48, 48, 3) and (4, 8, 48, 48), with one thing wrong or none."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for number in range(4 * BATCH):
        image, mask = pictures[0 if one_picture else number]
        if swap:
            mask = pictures[number + 1][1]
        top, left = rng.integers(1, 40), 5 if same_column else rng.integers(1, 70)
        step = 1 if never_flip or rng.random() < 0.5 else -1
        images.append(image[top : top + CROP, left : left + CROP][:, ::step])
        left += shift
        masks.append(mask[top : top + CROP, left : left + CROP][:, ::step])
    return np.stack(images).reshape(4, BATCH, CROP, CROP, 3), np.stack(masks).reshape(4, BATCH, CROP, CROP)


def test_a_right_path_passes_in_either_layout(pictures):
    images, masks = batches(pictures)
    for layout in (images, np.moveaxis(images, -1, 2)):
        assert shape_problem(layout, masks, batch_size=BATCH, crop=CROP, num_classes=2) is None
        assert pairing_problem(layout, masks) is None


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"shift": 1}, "32 of 32 masks do not belong to their images"),
        ({"swap": True}, "32 of 32 masks do not belong to their images"),
        ({"same_column": True}, "all crops begin at the same column"),
        ({"never_flip": True}, "0 of 32 samples are flipped, not about half"),
    ],
)
def test_a_wrong_path_is_found(pictures, wrong, problem):
    assert pairing_problem(*batches(pictures, **wrong)).startswith(problem)


def test_the_same_crop_of_the_same_picture_is_found(pictures):
    images, masks = batches(pictures)
    images[:], masks[:] = images[0, 0], masks[0, 0]
    images[:, ::2], masks[:, ::2] = images[:, ::2, :, ::-1], masks[:, ::2, :, ::-1]
    assert pairing_problem(images, masks) == "all crops begin at the same column"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda images, masks: (images.astype(np.float32), masks), "images are float32, not uint8"),
        (lambda images, masks: (images, masks.astype(np.int32)), "masks are int32, not uint8 or int64"),
        (lambda images, masks: (images[:, :, 1:], masks), "images are (8, 47, 48, 3), not 8 of 3x48x48"),
        (lambda images, masks: (images, masks[:, :, 1:]), "masks are (8, 47, 48), not 8 of 48x48"),
        (lambda images, masks: (images, masks + 7), "masks hold [7, 8], which is no class"),
    ],
)
def test_what_was_not_asked_for_is_told(pictures, change, problem):
    images, masks = change(*batches(pictures))
    assert shape_problem(images, masks, batch_size=BATCH, crop=CROP, num_classes=2) == problem


def test_ignored_pixels_are_known(pictures):
    images, masks = batches(pictures)
    masks[0] = 255
    assert shape_problem(images, masks.astype(np.int64), batch_size=BATCH, crop=CROP, num_classes=2) is None
