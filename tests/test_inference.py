import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unetdist.inference import predict_logits, resize_area

sizes = st.integers(1, 40)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1).eval()


def test_without_resize_the_logits_are_the_models():
    image = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    assert torch.equal(predict_logits(lambda image: image.float() * 2, image), image.float() * 2)


def test_resized_for_the_model_and_back():
    seen = []

    def model(image):
        seen.append(image)
        return image.float()

    image = torch.full((1, 3, 20, 30), 77, dtype=torch.uint8)
    logits = predict_logits(model, image, resize=(15, 8))
    assert seen[0].shape == (1, 3, 8, 15)
    assert seen[0].dtype == torch.uint8
    assert logits.shape == (1, 3, 20, 30)
    torch.testing.assert_close(logits, image.float())


def test_half_precision_is_for_the_network_alone():
    """bf16 has 8 bits: a third of the pixels resized in it are off by one, and interpolated logits tie."""
    seen = []

    def model(image):
        seen.append(image)
        return torch.stack([image[:, 0].float(), image[:, 0] * 1.01], dim=1).bfloat16()

    image = torch.randint(200, 256, (1, 3, 20, 30), dtype=torch.uint8)
    predict_logits(model, image, resize=(15, 8))
    with torch.autocast("cpu", torch.bfloat16):
        logits = predict_logits(model, image, resize=(15, 8))
    assert torch.equal(*seen)
    assert logits.dtype == torch.float32
    assert logits.unique().numel() > 255


def test_no_graph_is_kept(conv):
    assert not predict_logits(lambda image: conv(image.float()), torch.zeros(1, 3, 8, 8)).requires_grad


def test_an_image_does_not_depend_on_its_company_in_a_fixed_batch_shape(conv):
    image = torch.randint(0, 256, (4, 3, 33, 21), dtype=torch.uint8)
    other = image.clone()
    other[1:] = 255 - other[1:]
    first, second = (
        predict_logits(lambda batch: conv(batch.float()), batch, resize=(16, 16)) for batch in (image, other)
    )
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(sizes, sizes), data=st.data())
def test_shrinking_averages_as_the_shards_do(old, data):
    height, width = (data.draw(st.integers(1, size)) for size in old)
    image = np.random.default_rng(old).integers(0, 256, (*old, 3)).astype(np.float32)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    resized = resize_area(torch.from_numpy(image).permute(2, 0, 1)[None], height=height, width=width)
    np.testing.assert_allclose(resized[0].permute(1, 2, 0).numpy(), expected, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(sizes, sizes), new=st.tuples(sizes, sizes))
def test_resizing_keeps_the_mean_and_the_range(old, new):
    image = torch.from_numpy(np.random.default_rng(old).integers(0, 256, (1, 1, *old))).float()
    resized = resize_area(image, height=new[0], width=new[1])
    torch.testing.assert_close(resized.mean(), image.mean(), atol=1e-2, rtol=0)
    assert resized.min() >= image.min() - 1e-3
    assert resized.max() <= image.max() + 1e-3
