from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.predict.test_pipeline import PALETTE, bright_corner, save, saved  # noqa: F401 (a fixture)
from unetdist.errors import DataError
from unetdist.model.config import InferenceConfig, UNetConfig
from unetdist.model.saved_model import SavedModel
from unetdist.model.unet import UNet
from unetdist.predict.image import predict_image, predict_images, read_picture


def test_resize_of_the_training_is_applied_and_the_size_is_the_images_own(saved):  # noqa: F811
    seen = []
    saved.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    image = bright_corner(40, 60)[..., None].repeat(3, axis=2)
    pred = predict_image(SavedModel(saved.model, PALETTE, (12, 8), {}), image)
    assert seen == [(1, 3, 8, 12)]
    assert pred.shape == (40, 60)
    assert pred.dtype == np.uint8
    assert (pred == (image[..., 0] > 127)).mean() > 0.95


def test_a_file_that_went_away_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^file not found; correct its path"):
        read_picture(tmp_path / "gone.png", 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^file not found in {tmp_path}; correct its path"):
        read_picture(Path("gone.png"), 3)
    with pytest.raises(DataError, match="is a folder; give the images in it"):
        read_picture(tmp_path, 3)


def test_an_image_beyond_pils_limit_is_named(tmp_path, monkeypatch):
    save(tmp_path / "in.png", bright_corner())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="cannot be read .*exceeds limit.*cut it into parts"):
        read_picture(tmp_path / "in.png", 3)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    unet = UNet(UNetConfig(widths=(4, 8), norm="group"), num_classes=2, mean=[0.0] * 3, std=[1.0] * 3).eval()
    return SavedModel(unet, PALETTE, (24, 16), {})


def images(count):
    return list(np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), np.uint8))


def test_the_result_of_an_image_does_not_depend_on_its_company(network):
    seven = images(7)
    together = [
        each.classes
        for first in range(0, 7, 3)
        for each in predict_images(network, seven[first : first + 3], batch_size=3)
    ]
    alone = [predict_images(network, [image], batch_size=3)[0].classes for image in seven]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("inference", [InferenceConfig(), InferenceConfig(window=(8, 8)), InferenceConfig(flips=True)])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_probabilities_in_255ths(network, inference, batch_size):
    (one,) = predict_images(network, images(1), batch_size=batch_size, inference=inference, with_probabilities=True)
    assert one.probabilities.shape == (2, 20, 30)
    assert one.probabilities.dtype == np.uint8
    assert np.abs(one.probabilities.sum(0, dtype=int) - 255).max() <= 1
    differs = one.probabilities[0] != one.probabilities[1]
    assert np.array_equal(one.probabilities.argmax(0)[differs], one.classes[differs])


def test_images_that_were_resized_already_are_not_resized_again(network):
    (once,) = predict_images(network, images(1), resized_to=(24, 16))
    assert np.array_equal(once.classes, predict_image(SavedModel(network.model, PALETTE, None, {}), images(1)[0]))
