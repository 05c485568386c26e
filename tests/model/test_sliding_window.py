import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.model.sliding_window import HIGHEST_WEIGHT, Axis, Windows

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
