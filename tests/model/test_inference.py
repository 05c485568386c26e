import argparse
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
from unetdist.model.config import InferenceConfig, add_inference_options, inference_of
from unetdist.model.inference import HIGHEST_WEIGHT, Axis, Team, Windows, predict_logits, predict_rows, resize_area

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
    portions = list(predict_rows(smooth, picture(600, 30), resize=(30, 50), inference=windowed()))
    assert [portion.shape[1:] for portion in portions] == [(256, 30), (256, 30), (88, 30)]
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
    whole = predict_logits(smooth, image, resize=resize, inference=dataclasses.replace(inference, window=None))
    together = predict_logits(smooth, image, resize=resize, inference=inference)
    assert (together.exp() - whole.exp()).abs().mean() < 0.01


def test_certainty_has_a_finite_logarithm():
    image = picture()
    averaged = predict_logits(lambda image: image.float() * 1000, image, inference=InferenceConfig(flips=True))
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
        ({"scales": ()}, r"inference.scales \(\[\]\) must be one or more numbers above 0; use \[0.75, 1.0, 1.25\]"),
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


def told(*words):
    parser = argparse.ArgumentParser()
    add_inference_options(parser)
    return inference_of(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {}),
        ("--window 512 640 --overlap 0.25", {"window": (512, 640), "overlap": 0.25}),
        ("--tta", {"flips": True, "scales": (0.75, 1.0, 1.25)}),
        ("--tta --scales 1", {"flips": True}),
        ("--scales 1 1.5", {"scales": (1.0, 1.5)}),
    ],
)
def test_options_become_settings(words, values):
    assert told(*words.split()) == InferenceConfig(**values)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"inference.overlap \(1.0\) must be .* below 1; use 0.5"):
        told("--overlap", "1")


CPU = torch.device("cpu")


def joined(image, window, overlap, batch_size=3, network=lambda windows: windows):
    windows = Windows(image, window, overlap, batch_size=batch_size)
    results = (result for number in range(windows.num_batches) for result in network(windows.batch(number)))
    return torch.cat(list(windows.join(results)), dim=1)


def random_case(seed):
    """Image (1, C, H, W) in whole numbers 0..255, window, overlap, batch size."""
    rng = np.random.default_rng(seed)
    size, window = rng.integers(1, 90, 2), rng.integers(1, 60, 2)
    image = torch.from_numpy(rng.integers(0, 256, (1, rng.integers(1, 4), *size), np.uint8))
    return (
        image,
        tuple(window.tolist()),
        float(rng.choice([0, 0.25, 0.5, 0.9, rng.random()])),
        int(rng.integers(1, 9)),
    )


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_a_network_that_returns_its_input_gives_back_the_image_exactly(first):
    for seed in range(first, first + 50):
        image, window, overlap, batch_size = random_case(seed)
        assert joined(image, window, overlap, batch_size).equal(image[0].float()), seed


def naive(image, window, overlap, network):
    """Weighted sums over the whole image, window by window."""
    rows, columns = (Axis(n, w, overlap, CPU) for n, w in zip(image.shape[-2:], window, strict=True))
    total = weight = 0.0
    for top in rows.starts:
        for left in columns.starts:
            inside = torch.zeros(image.shape[-2:], dtype=torch.float64)
            place = slice(top, top + rows.window), slice(left, left + columns.window)
            inside[place] = rows.weights[:, None] * columns.weights
            result = torch.zeros(image.shape[1:], dtype=torch.float64)
            result[:, *place] = network(image[..., *place])[0].double()
            total, weight = total + inside * result, weight + inside
    return (total / weight).float()


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_sums_over_the_whole_image(seed):
    image, window, overlap, batch_size = random_case(seed)

    def network(windows):  # depends on the place in the window, as a padded network does
        values = windows.float()
        return values.sin() * 10 + values.cumsum(-1).cumsum(-2) / values.shape[-1]

    actual = joined(image, window, overlap, batch_size, network)
    torch.testing.assert_close(actual, naive(image, window, overlap, network), atol=1e-6, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 300), window=st.integers(1, 100), overlap=st.floats(0, 0.99))
def test_windows_cover_the_image_evenly_and_overlap_as_much_as_asked(size, window, overlap):
    axis = Axis(size, window, overlap, CPU)
    steps = np.diff(axis.starts)
    assert (axis.starts[0], axis.starts[-1] + axis.window) == (0, size)
    assert axis.window == min(size, window)
    if len(steps):
        assert steps.min() >= 1
        assert steps.max() <= max(1, np.ceil(window * (1 - overlap)))
        assert steps.max() - steps.min() <= 1
    assert axis.totals.min() >= 1


def test_weights_are_a_gaussian_of_an_eighth_of_the_window_in_whole_numbers():
    weights = Axis(1000, 64, 0.5, CPU).weights
    assert weights.equal(weights.round())
    assert weights.equal(weights.flip(0))
    assert weights[[31, 32]].tolist() == [HIGHEST_WEIGHT] * 2
    assert weights[0] == 1
    assert weights[40].item() == pytest.approx(HIGHEST_WEIGHT * np.exp(-(8.5**2) / (2 * 8**2)), abs=0.5)


def test_every_batch_is_full_and_has_one_shape():
    image = torch.arange(5.0).expand(1, 2, 3, 5)
    windows = Windows(image, (9, 2), 0.0, batch_size=2)
    assert windows.num_batches == 2
    batches = [windows.batch(number) for number in range(2)]
    assert [tuple(batch.shape) for batch in batches] == [(2, 2, 3, 2)] * 2
    assert torch.cat(batches)[:, 0, 0].tolist() == [[0, 1], [1, 2], [3, 4], [3, 4]]


def test_rows_come_as_soon_as_no_later_window_sees_them():
    image = torch.zeros(1, 1, 100, 30)
    windows = Windows(image, (20, 30), 0.5, batch_size=1)
    asked = []

    def results():
        for number in range(windows.num_batches):
            asked.append(number)
            yield windows.batch(number)[0]

    heights = []
    for rows in windows.join(results()):
        heights.append(rows.shape[1])
        assert len(asked) == len(heights)
    assert heights == [10] * 8 + [20]


def test_results_of_float64_stay_so():
    image = torch.rand(1, 2, 30, 20, dtype=torch.float64)
    result = joined(image, (7, 8), 0.5)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, image[0], atol=1e-14, rtol=0)
