"""Random numbers that are a pure function of a key: equal on every rank, worker, machine and numpy version.

The mixing function is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014). numpy's own streams are not used because they may change between its versions.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

KeyPart = int | npt.NDArray[np.integer]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """First part of every key, so that no two uses of randomness share numbers."""

    SHARDS = 1
    WINDOWS = 2
    AUGMENT = 3
    BOOTSTRAP = 4
    SCORED = 5
    SWAPS = 6
    MIX = 7


def keyed_hash(*key: KeyPart) -> npt.NDArray[np.uint64]:
    """Hash of the key, 64 bits each; parts are integers or integer arrays and broadcast (at least 1-d).

    For equal leading parts, different last parts never collide.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _splitmix64(state + np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


def keyed_uniform(*key: KeyPart) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, one per key."""
    return (keyed_hash(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_permutation(size: int, *key: KeyPart) -> npt.NDArray[np.int64]:
    """A permutation of 0..size-1: the argsort of the hashes of (key, 0), (key, 1), ..."""
    return np.argsort(keyed_hash(*key, np.arange(size)), kind="stable")


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
