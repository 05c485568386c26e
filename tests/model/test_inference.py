import dataclasses

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.distributed.launcher import run_ranks
from unetdist.errors import ConfigError
from unetdist.model.inference import InferenceConfig, Team, predict_logits, predict_rows, resize_area

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


def smooth(image):
    """Logits of 3 classes that depend on a pixel's neighbours to the right more than on those to the left."""
    grey = image.float().mean(1, keepdim=True) / 50
    return torch.cat([grey, grey.roll(1, -1) * 0.8 + 0.3, (grey - 2) ** 2], dim=1)


def picture(height=41, width=57):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([(y / 5).sin(), (x / 7).cos(), ((x + y) / 9).sin()])
    return (127 + 120 * waves).to(torch.uint8)[None]


def windowed(**changes):
    return InferenceConfig(**{"window": (16, 24), "window_batch": 3, **changes})


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_of_a_network_that_sees_single_pixels_give_its_logits(batch):
    image = torch.cat([picture(), 255 - picture()])[:batch]
    logits = predict_logits(lambda image: image.float() * 2, image, inference=windowed())
    assert torch.equal(logits, image.float() * 2)


def test_an_image_that_fits_into_the_window_is_predicted_as_a_whole(conv):
    def model(image):
        return conv(image.float())

    image = picture()
    logits = predict_logits(model, image, inference=windowed(window=(100, 57), window_batch=1))
    assert torch.equal(logits, predict_logits(model, image))


def test_windows_lie_in_the_image_as_trained_and_logits_at_its_own_size():
    seen = []

    def model(image):
        seen.append(tuple(image.shape))
        return image.float()

    logits = predict_logits(model, picture(600, 90), resize=(30, 20), inference=windowed())
    assert set(seen) == {(3, 3, 16, 24)}
    whole = predict_logits(model, picture(600, 90), resize=(30, 20))
    torch.testing.assert_close(logits, whole, atol=0, rtol=1e-5)


def test_rows_of_a_large_image_come_in_portions():
    rows = predict_rows(smooth, picture(100, 30), inference=windowed())
    assert max(portion.shape[1] for portion in rows) == 16
    (whole,) = predict_rows(smooth, picture())
    assert torch.equal(whole, predict_logits(smooth, picture())[0])


def test_flips_average_the_probabilities_of_the_mirror_image():
    image = picture()
    averaged = predict_logits(smooth, image, inference=InferenceConfig(flips=True))
    mirrored = smooth(image.flip(-1)).flip(-1)
    expected = (smooth(image).softmax(1) + mirrored.softmax(1)) / 2
    torch.testing.assert_close(averaged.softmax(1), expected)
    torch.testing.assert_close(averaged.exp(), expected)
    again = predict_logits(smooth, image.flip(-1), inference=InferenceConfig(flips=True))
    torch.testing.assert_close(again.flip(-1), averaged)


def test_scales_show_the_network_other_sizes_and_average_at_the_images_own():
    seen = []

    def model(image):
        seen.append(tuple(image.shape[-2:]))
        return smooth(image)

    image = picture()
    averaged = predict_logits(model, image, inference=InferenceConfig(scales=(0.75, 1.0, 1.25), flips=True))
    assert seen == [(31, 43)] * 2 + [(41, 57)] * 2 + [(51, 71)] * 2
    assert averaged.shape == (1, 3, 41, 57)
    torch.testing.assert_close(averaged.exp().sum(1), torch.ones(1, 41, 57))
    torch.testing.assert_close(averaged.exp(), smooth(image).softmax(1), atol=0.25, rtol=0)


def test_a_uniform_image_looks_alike_at_every_scale():
    image = torch.full((1, 3, 20, 30), 99, dtype=torch.uint8)
    averaged = predict_logits(smooth, image, inference=InferenceConfig(scales=(0.5, 1.7)))
    torch.testing.assert_close(averaged.softmax(1), smooth(image).softmax(1))


@pytest.mark.parametrize("resize", [None, (40, 30)])
def test_everything_together_is_close_to_its_parts(resize):
    image = picture(100, 130)
    inference = windowed(window=(40, 40), flips=True, scales=(1.0, 1.25))
    whole = predict_logits(
        smooth, image, resize=resize, inference=dataclasses.replace(inference, window=None)
    )
    together = predict_logits(smooth, image, resize=resize, inference=inference)
    assert (together.exp() - whole.exp()).abs().mean() < 0.01


def test_certainty_has_a_finite_logarithm():
    image = picture()
    averaged = predict_logits(
        lambda image: image.float() * 1000, image, inference=InferenceConfig(flips=True)
    )
    assert averaged.isfinite().all()
    assert averaged.argmax(1).equal(image.argmax(1))


def test_the_mean_of_windows_in_half_precision_is_float32():
    image = picture()
    logits = predict_logits(lambda image: image.bfloat16() / 3, image, inference=windowed())
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": (0, 5)}, r"inference.window \(\[0, 5\]\) must be 1 or more pixels; use \[512, 512\]"),
        ({"overlap": 1.0}, r"inference.overlap \(1.0\) must be at least 0 and below 1; use 0.5"),
        ({"overlap": -0.1}, "inference.overlap"),
        ({"window_batch": 0}, r"inference.window_batch \(0\) must be at least 1; use 2"),
        (
            {"scales": ()},
            r"inference.scales \(\[\]\) must be one or more numbers above 0; use \[0.75, 1.0, 1.25\]",
        ),
        ({"scales": (1.0, 0.0)}, "inference.scales"),
        ({"scales": (float("nan"),)}, "inference.scales"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        InferenceConfig(**values)


def shared(world_size, owner, flips):
    """What a rank of a team gets: portions as lists, or nothing."""
    rank = dist.get_rank() if world_size > 1 else 0
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 5, padding=2).eval()
    team = Team(rank=rank, world_size=world_size, owner=owner)
    inference = windowed(flips=flips)
    rows = predict_rows(lambda image: network(image.float()), picture(), inference=inference, team=team)
    return [portion.numpy() for portion in rows]


@pytest.mark.parametrize(("world_size", "owner"), [(2, 0), (2, 1), (3, 1), (7, 2)])
def test_windows_of_a_team_give_the_bits_of_one_process(world_size, owner):
    (alone,) = run_ranks(shared, 1, 1, 0, True)
    ranks = run_ranks(shared, world_size, world_size, owner, True)
    assert [len(portions) > 0 for portions in ranks] == [rank == owner for rank in range(world_size)]
    assert all(map(np.array_equal, ranks[owner], alone))
