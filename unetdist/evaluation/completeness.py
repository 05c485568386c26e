"""The proof that a score counted each sample of a data set once, and each of its pixels."""

from dataclasses import dataclass

import numpy as np

from unetdist.data.keyed_random import Stream, keyed_hash
from unetdist.errors import DataError

FINGERPRINT_BLOCK = 2**20
"""Sample ids that are hashed together."""


@dataclass(frozen=True)
class Expected:
    """What the manifest says the data set holds; the score is refused unless exactly this was counted."""

    source: str
    num_samples: int
    class_pixels: np.ndarray
    """(num_classes,) int64: pixels of each class over all masks."""


def prove_complete(
    confusion: np.ndarray, seen: list[int], expected: Expected, class_names: tuple[str, ...]
) -> None:
    """Compare what all ranks counted with the manifest.

    Args:
        confusion: (C, C) int64 over the whole data set; rows target.
        seen: number of samples, and the sum of the `fingerprint`s of their ids.
        expected: counts of the manifest.
        class_names: by class index.

    Raises:
        DataError: they differ.
    """
    num_samples, counted_fingerprint = seen
    remedy = "the score would be wrong, so it is refused; run launch/shard_dataset.py again on this folder"
    if num_samples != expected.num_samples:
        raise DataError(
            f"{num_samples} samples were scored, the manifest lists {expected.num_samples}; {remedy}",
            source=expected.source,
        )
    if counted_fingerprint != _fingerprint_of_all(expected.num_samples):
        raise DataError(
            f"{num_samples} samples were scored, but some of them twice and others never; {remedy}",
            source=expected.source,
        )
    counted = confusion.sum(1)
    for name, pixels, listed in zip(class_names, counted, expected.class_pixels, strict=True):
        if pixels != listed:
            raise DataError(
                f"{pixels} pixels of class {name} were scored, the manifest lists {listed}; {remedy}",
                source=expected.source,
            )


def fingerprint(sample_ids: np.ndarray) -> int:
    """A sum of hashes that tells sets of samples apart; it wraps at 64 bits, as the sum over ranks does."""
    return int(keyed_hash(Stream.SCORED, sample_ids).view(np.int64).sum())


def _fingerprint_of_all(num_samples: int) -> int:
    """Of the samples 0..num_samples - 1, block by block, for there may be a billion."""
    starts = range(0, num_samples, FINGERPRINT_BLOCK)
    blocks = [fingerprint(np.arange(at, min(at + FINGERPRINT_BLOCK, num_samples))) for at in starts]
    return int(np.array(blocks, np.int64).sum())
