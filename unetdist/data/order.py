"""The order of samples as a pure function of (shard sizes, seed, epoch): ranks and workers look it up."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unetdist.data.keyed_random import Stream, keyed_permutation
from unetdist.errors import DataError

Ints = npt.NDArray[np.int64]


class Places(NamedTuple):
    """Where positions of the endless sequence lie; arrays of equal length."""

    epoch: Ints
    sample_id: Ints


class _Epoch(NamedTuple):
    """The shards of one epoch laid end to end."""

    shards: Ints
    """(S,) shard numbers in this epoch's order."""
    starts: Ints
    """(S + 1,) place in the row of shards at which each begins; the last is the number of samples."""


class Order:
    """The endless sequence of samples: epoch after epoch without a seam, each sample once per epoch.

    In every epoch the shards are permuted and laid end to end, cut into `lanes` equal parts (+-1 sample),
    and each lane is shuffled inside windows of `window` samples. Position p of the epoch is row p // lanes
    of lane p % lanes. A data set that fits one window has one lane: a full shuffle.

    Memory grows with the shards and with `lanes * window`, not with the samples; a look-up takes
    O(log shards). Sample ids number the samples of all shards, in the order of `shard_sizes`.
    """

    def __init__(self, shard_sizes: Sequence[int] | Ints, *, seed: int, lanes: int = 64, window: int = 4096) -> None:
        self._sizes = np.asarray(shard_sizes, np.int64)
        self._first_ids = np.cumsum(self._sizes) - self._sizes
        self.num_samples = int(self._sizes.sum())
        if self.num_samples == 0:
            raise DataError("the data set has no samples; write shards from pictures first.")
        self.lanes = 1 if self.num_samples <= window else lanes
        self.seed = seed
        self.window = window
        # Two epochs and two windows per lane are alive where one ends and the next begins.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)
        self._permutation = lru_cache(maxsize=2 * self.lanes)(self._shuffle)

    def locate(self, positions: Ints) -> Places:
        """Epoch and sample id of each position (int64, >= 0) of the endless sequence."""
        epoch, row, lane = self._rows(np.asarray(positions, np.int64))
        window = row // self.window
        place = np.empty_like(row)
        sample_id = np.empty_like(row)
        for group in _equal_groups(epoch, lane, window):
            at = group[0]
            first, permutation = self._permutation(int(epoch[at]), int(lane[at]), int(window[at]))
            place[group] = first + permutation[row[group] % self.window]
        for group in _equal_groups(epoch):
            shards, starts = self._epoch(int(epoch[group[0]]))
            # "right" steps over empty shards: they begin where the next one begins.
            k = np.searchsorted(starts, place[group], side="right") - 1
            sample_id[group] = self._first_ids[shards[k]] + place[group] - starts[k]
        return Places(epoch, sample_id)

    def rank_slice(self, first_position: int, global_batch_size: int, rank: int, world_size: int) -> Places:
        """This rank's share of the step that begins at `first_position`.

        The step's positions, sorted by lane, are cut into `world_size` equal slices: the step has the same
        samples for any world size, and a rank stays with its own lanes, that is with its own part of the
        shards (most so where `lanes` is a multiple of `world_size`, and the batch a multiple of `lanes`).
        """
        return self.locate(self._share(first_position, global_batch_size, rank, world_size))

    def partners(self, first_position: int, global_batch_size: int, rank: int, world_size: int) -> Places:
        """The partner of each sample of `rank_slice`; the partner of position p is at p XOR 1.

        It is in the same step if the batch is even, and in a neighbouring lane, mostly of the same rank.
        """
        return self.locate(self._share(first_position, global_batch_size, rank, world_size) ^ 1)

    def upcoming(
        self, first_position: int, *, global_batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, int]]:
        """(position, shard number) without end, in the order in which this rank begins to need the shards.

        The steps begin at `first_position`; a position is that of the step that begins a window, which needs
        all shards that the window overlaps (one that reaches into the next window comes again with it).
        """
        windows_per_epoch = 1 + self.num_samples // self.lanes // self.window
        begun = np.full(self.lanes, -1)
        for first in count(first_position, global_batch_size):
            epoch, row, lane = self._rows(self._share(first, global_batch_size, rank, world_size))
            # Windows of a lane are counted through all epochs, so that each begins after the one before it.
            number = epoch * windows_per_epoch + row // self.window
            is_new = number > begun[lane]
            if is_new.any():
                for new_number, new_lane in np.unique([number[is_new], lane[is_new]], axis=1).T.tolist():
                    begun[new_lane] = new_number
                    new_epoch, window = divmod(new_number, windows_per_epoch)
                    for shard in self._shards_of(new_epoch, new_lane, window):
                        yield first, shard

    def _rows(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """Epoch, row and lane of each position."""
        epoch, position = np.divmod(positions, self.num_samples)
        row, lane = np.divmod(position, self.lanes)
        return epoch, row, lane

    def _share(self, first_position: int, global_batch_size: int, rank: int, world_size: int) -> Ints:
        """This rank's positions of the step that begins at `first_position`."""
        assert global_batch_size % world_size == 0, "the loader checks that the slices are equal"
        share = global_batch_size // world_size
        positions = first_position + np.arange(global_batch_size, dtype=np.int64)
        by_lane = np.argsort(positions % self.num_samples % self.lanes, kind="stable")
        return positions[by_lane[rank * share : (rank + 1) * share]]

    def _lay_out(self, epoch: int) -> _Epoch:
        shards = keyed_permutation(len(self._sizes), Stream.SHARDS, self.seed, epoch)
        return _Epoch(shards, np.concatenate(([0], np.cumsum(self._sizes[shards]))))

    def _shuffle(self, epoch: int, lane: int, window: int) -> tuple[int, npt.NDArray[np.int32]]:
        """Where the window begins in the row of shards, and the permutation of its rows."""
        start, end = self._window(lane, window)
        permutation = keyed_permutation(end - start, Stream.WINDOWS, self.seed, epoch, lane, window)
        return start, permutation.astype(np.int32)

    def _window(self, lane: int, window: int) -> tuple[int, int]:
        """Begin and end of a lane's window in the row of shards."""
        rows, longer_lanes = divmod(self.num_samples, self.lanes)
        lane_start = lane * rows + min(lane, longer_lanes)
        lane_end = lane_start + rows + (lane < longer_lanes)
        start = lane_start + window * self.window
        return start, min(start + self.window, lane_end)

    def _shards_of(self, epoch: int, lane: int, window: int) -> list[int]:
        """Numbers of the shards that a window overlaps, in the order of the row; empty ones left out."""
        shards, starts = self._epoch(epoch)
        start, end = self._window(lane, window)
        first, last = np.searchsorted(starts, [start, end - 1], side="right") - 1
        overlapped = shards[first : last + 1]
        numbers: list[int] = overlapped[self._sizes[overlapped] > 0].tolist()
        return numbers


def _equal_groups(*columns: Ints) -> list[Ints]:
    """Indices of the rows of `columns`, grouped by equal rows."""
    order = np.lexsort(columns)
    if len(order) == 0:
        return []
    changed = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    return np.split(order, np.flatnonzero(changed) + 1)
