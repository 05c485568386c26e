import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unetdist.data.keyed_random import keyed_hash, keyed_permutation, keyed_uniform


def test_hash_of_one_number_is_splitmix64():
    """The first output for seed 1234567 of the reference implementation (prng.di.unimi.it/splitmix64.c)."""
    assert keyed_hash(1234567).tolist() == [6457827717110365317]


def test_values_never_change():
    """Runs of older versions must be repeatable: these numbers are part of the format."""
    assert keyed_hash(0, 1, 2).tolist() == [17650578182555822980]
    assert keyed_permutation(8, 1, 2, 3).tolist() == [7, 0, 4, 1, 2, 5, 6, 3]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.integers(1, 50))
def test_arrays_and_numbers_agree(key, count):
    together = keyed_hash(*key, np.arange(count))
    assert together.tolist() == [keyed_hash(*key, number)[0] for number in range(count)]
    assert len(set(together.tolist())) == count


def test_uniform_is_uniform_and_its_keys_are_independent():
    draws = keyed_uniform(7, np.arange(200)[:, None], np.arange(500)[None])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert abs(counts - draws.size / 50).max() < 5 * np.sqrt(draws.size / 50)
    correlations = np.corrcoef(draws)
    np.fill_diagonal(correlations, 0)
    assert abs(correlations).max() < 5.5 / np.sqrt(500)


@given(st.integers(0, 300), st.integers(0, 2**63))
def test_permutation_holds_each_number_once(size, seed):
    assert sorted(keyed_permutation(size, seed)) == list(range(size))
