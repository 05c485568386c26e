"""Memory that workers fill and the trainer reads: made before the workers, so that only slot numbers travel.

Handed over as tensors, every batch would be new files in /dev/shm, whose pages both sides touch for the first
time (30 ms for 16 pictures of 512x512), and which a container limits to 64 MB unless told otherwise.
"""

import mmap
import weakref
from collections import deque
from dataclasses import dataclass
from itertools import count

import numpy as np

from unetdist.data.batch import Batch, Record


class Arena:
    """Slots for batches of one kind in anonymous shared memory: processes forked later see the same bytes.

    A slot that was handed out as a batch is free again when nothing refers to the batch's tensors any more.
    """

    def __init__(self, num_slots: int, dtype: np.dtype[np.void]) -> None:
        """`dtype`: of one batch, as `batch_dtype` gives it."""
        self.number = next(_numbers)
        self._dtype = dtype
        self._memory = mmap.mmap(-1, num_slots * dtype.itemsize)
        self._free = deque(range(num_slots))
        _arenas[self.number] = self

    def take(self) -> int | None:
        """A free slot; None where the trainer still holds the batches of all of them."""
        return self._free.popleft() if self._free else None

    def record(self, slot: int) -> Record:
        """The memory of a slot, (1,)."""
        return np.frombuffer(self._memory, self._dtype, count=1, offset=slot * self._dtype.itemsize)

    def batch(self, slot: int, num_bad: int) -> Batch:
        """What a worker has written to a slot, in place."""
        record = self.record(slot)
        # The batch's tensors refer to this very array, so it goes when the last of them does.
        weakref.finalize(record, self._free.append, slot).atexit = False
        return Batch.of(record, num_bad)


@dataclass(frozen=True)
class FilledSlot:
    """What a worker sends of a batch that it wrote to an arena."""

    arena: int
    slot: int
    num_bad: int

    def batch(self) -> Batch:
        """The batch, in place; once."""
        return _arenas[self.arena].batch(self.slot, self.num_bad)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which a GPU copies without waiting (DataLoader calls it in a thread)."""
        return self.batch().pin_memory()


_arenas: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()
"""Of this process, by number: what arrives from a worker cannot refer to an object."""
_numbers = count()
