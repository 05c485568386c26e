import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unetdist.data.order import Order
from unetdist.errors import DataError

shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**63)


@given(shard_sizes, seeds, st.integers(1, 20), st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_holds_each_sample_once(sizes, seed, lanes, window, epoch):
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    positions = epoch * order.num_samples + np.arange(order.num_samples)
    places = order.locate(positions)
    assert (places.epoch == epoch).all()
    assert sorted(places.sample_id) == list(range(sum(sizes)))


@given(shard_sizes, seeds, st.integers(1, 20), st.integers(1, 40), st.data())
def test_a_look_up_does_not_depend_on_what_was_looked_up_before(sizes, seed, lanes, window, data):
    """So a resumed run continues exactly: position in, sample out."""
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    positions = data.draw(st.lists(st.integers(0, 4 * order.num_samples), max_size=20))
    together = order.locate(np.array(positions, np.int64))
    for row, position in enumerate(positions):
        alone = Order(sizes, seed=seed, lanes=lanes, window=window).locate(np.array([position]))
        assert [column[row] for column in together] == [column[0] for column in alone]


@given(
    shard_sizes,
    seeds,
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.integers(1, 3),
    st.integers(0, 400),
)
def test_every_world_size_has_the_same_steps(sizes, seed, lanes, window, world_size, per_rank, first):
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    batch = 12 * per_rank
    whole = order.locate(first + np.arange(batch))
    parts = [order.rank_slice(first, batch, rank, world_size) for rank in range(world_size)]
    assert {len(sample_id) for _, sample_id in parts} == {batch // world_size}
    joined = [pair for part in parts for pair in zip(*part, strict=True)]
    assert sorted(joined) == sorted(zip(whole.epoch, whole.sample_id, strict=True))
    only = order.rank_slice(first, batch, 0, 1)
    assert joined == list(zip(*only, strict=True)), "ranks in order are the one process's batch in order"


def _draw_by_hand(sizes, seed, epoch, lanes, window):
    """The drawing, spelt out with lists: shards end to end, cut into lanes, windows shuffled, lanes dealt."""
    from unetdist.keyed_random import Stream, keyed_permutation

    first = np.cumsum([0, *sizes])
    row = []
    for shard in keyed_permutation(len(sizes), Stream.SHARDS, seed, epoch):
        row += range(first[shard], first[shard + 1])
    short, longer = divmod(len(row), lanes)
    dealt = []
    for lane in range(lanes):
        length = short + (lane < longer)
        part, row = row[:length], row[length:]
        shuffled = []
        for number, at in enumerate(range(0, length, window)):
            piece = part[at : at + window]
            permutation = keyed_permutation(len(piece), Stream.WINDOWS, seed, epoch, lane, number)
            shuffled += [piece[k] for k in permutation]
        dealt.append(shuffled)
    return [dealt[p % lanes][p // lanes] for p in range(sum(sizes))]


@given(shard_sizes, seeds, st.integers(1, 20), st.integers(1, 10), st.integers(0, 3))
def test_it_is_the_drawing(sizes, seed, lanes, window, epoch):
    assume(sum(sizes) > window)
    order = Order(sizes, seed=seed, lanes=lanes, window=window)
    located = order.locate(epoch * order.num_samples + np.arange(order.num_samples)).sample_id
    assert located.tolist() == _draw_by_hand(sizes, seed, epoch, lanes, window)


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


@settings(deadline=None)
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
