import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.data.order import Order
from unetdist.errors import DataError

shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**63)
quick = settings(deadline=None, max_examples=30)


@quick
@given(shard_sizes, seeds, st.integers(1, 20), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_holds_each_sample_once(sizes, seed, lanes, window, epoch):
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    positions = epoch * order.num_samples + np.arange(order.num_samples)
    places = order.locate(positions)
    assert (places.epoch == epoch).all()
    assert sorted(places.sample_id) == list(range(sum(sizes)))


@quick
@given(shard_sizes, seeds, st.integers(1, 20), st.integers(1, 40), st.data())
def test_a_look_up_does_not_depend_on_what_was_looked_up_before(sizes, seed, lanes, window, data):
    """So a resumed run continues exactly: position in, sample out."""
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    positions = data.draw(st.lists(st.integers(0, 4 * order.num_samples), max_size=20))
    together = order.locate(np.array(positions, np.int64))
    for row, position in enumerate(positions):
        alone = Order(sizes, seed=seed, lanes=lanes, window=window).locate(np.array([position]))
        assert [column[row] for column in together] == [column[0] for column in alone]


def told_before(upcoming, end):
    """(position, shard) of what begins to be needed before position `end`."""
    return list(itertools.takewhile(lambda item: item[0] < end, upcoming))


@quick
@given(
    shard_sizes,
    seeds,
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, 6),
    st.integers(0, 400),
)
def test_a_shard_is_upcoming_before_it_is_read(sizes, seed, lanes, window, world_size, per_rank, first):
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    batch = world_size * per_rank
    end = first + 3 * order.num_samples
    for rank in range(world_size):
        options = {"global_batch_size": batch, "rank": rank, "world_size": world_size}
        told = told_before(order.upcoming(first, **options), end)
        assert [position for position, _ in told] == sorted(position for position, _ in told)
        assert all(sizes[shard] > 0 for _, shard in told)
        first_told = {shard: position for position, shard in reversed(told)}
        for step in range(first, end, batch):
            _, sample_id = order.rank_slice(step, batch, rank, world_size)
            for shard in shard_of[sample_id].tolist():
                assert first_told[shard] <= step


def test_what_is_upcoming_is_what_a_rank_reads_and_little_more():
    """Also where the step is smaller than the lanes, and where the last lane is shorter."""
    order = Order([100] * 641, seed=0, lanes=64, window=200)
    for batch in (16, 128):
        steps = range(0, order.num_samples - batch, batch)
        for rank in (0, 5):
            read = {int(s) for first in steps for s in order.rank_slice(first, batch, rank, 8)[1] // 100}
            upcoming = order.upcoming(0, global_batch_size=batch, rank=rank, world_size=8)
            told = {shard for _, shard in told_before(upcoming, steps.stop)}
            assert told == read
            assert len(told) <= 641 / 8 + 9


def test_what_is_upcoming_is_told_lazily_and_in_the_order_of_need():
    order = Order([10] * 8, seed=0, lanes=2, window=20)
    upcoming = order.upcoming(0, global_batch_size=4)
    shards = order.locate(np.arange(80)).sample_id // 10
    lanes = [shards[lane::2].reshape(2, 20) for lane in (0, 1)]
    expected = [(at, set(lane[window])) for window, at in enumerate((0, 40)) for lane in lanes]
    for at, wanted in expected:
        assert {next(upcoming) for _ in range(2)} == {(at, shard) for shard in wanted}
    assert next(upcoming)[0] == 80, "the next epoch"
    assert next(order.upcoming(60, global_batch_size=4))[0] == 60, "in the middle of a window"


def test_a_small_data_set_is_shuffled_as_a_whole():
    order = Order([50, 50], seed=0, lanes=64, window=100)
    assert order.lanes == 1
    places = order.locate(np.arange(20_000))
    mean_id_by_position = places.sample_id.reshape(200, 100).mean(axis=0)
    assert abs(mean_id_by_position - 49.5).max() < 5 * 29 / np.sqrt(200)


def test_epochs_and_seeds_differ():
    sizes = [100] * 10
    order = Order(sizes, seed=1, lanes=4, window=50)
    epochs = order.locate(np.arange(3000)).sample_id.reshape(3, 1000)
    other = Order(sizes, seed=2, lanes=4, window=50).locate(np.arange(1000)).sample_id
    for left, right in [(epochs[0], epochs[1]), (epochs[1], epochs[2]), (epochs[0], other)]:
        assert (left == right).mean() < 0.05


def test_a_rank_stays_with_its_part_of_the_shards():
    """What makes a node fetch each shard once: with 8 ranks, about an eighth of the shards each."""
    order = Order([100] * 640, seed=0, lanes=64, window=200)
    steps = order.num_samples // 64
    seen = [set(order.rank_slice(step * 64, 64, 3, 8)[1] // 100) for step in range(steps)]
    assert len(set().union(*seen)) <= 640 / 8 + 8


@quick
@given(seeds)
def test_one_sample_and_fewer_samples_than_lanes(seed):
    assert Order([0, 1, 0], seed=seed).locate(np.arange(5)).sample_id.tolist() == [0] * 5
    few = Order([2, 0, 3], seed=seed, lanes=64, window=1)
    assert sorted(few.locate(np.arange(5, 10)).sample_id) == list(range(5))


def test_memory_grows_with_shards_not_with_samples():
    """A hundred million samples: an index of them alone would be 800 MB."""
    tracemalloc.start()
    order = Order(np.full(100_000, 1000), seed=0)
    for step in range(20):
        order.rank_slice(step * 4_000_000, 512, 0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_no_samples(sizes):
    with pytest.raises(DataError, match=r"no samples; write shards from pictures first"):
        Order(sizes, seed=0)


def test_the_order_never_changes():
    """A run is resumed by its number of samples alone, so an order of another version would repeat samples."""
    places = Order([5, 3, 4], seed=5, lanes=2, window=3).locate(np.arange(12))
    assert places.sample_id.tolist() == [2, 6, 0, 7, 1, 8, 3, 9, 4, 10, 5, 11]
