"""How the processes of an examination tell each other what they found.

Not by collectives: one that a process does not come to, because its own part failed, would hold up all others.
"""

import json
import time
from typing import Any

from unetdist.distributed.collectives import World
from unetdist.distributed.rendezvous import Store
from unetdist.errors import LaunchError

LOOK_EVERY_S = 0.02

WAIT_S = 1800.0
"""How long rank 0 waits for what the others measure."""

PATIENCE_S = 86_400.0
"""How long the others wait for rank 0, which may read all data meanwhile; its launcher ends them if it dies."""


class Board:
    """Where rank 0 tells the others, and the others rank 0; with one process nobody is told."""

    def __init__(self, store: Store | None, world: World, *, wait_s: float = WAIT_S) -> None:
        """Open it.

        Args:
            store: from `unetdist.distributed.rendezvous.open_store`; None where there is one process.
            world: this process among the others.
            wait_s: seconds that rank 0 waits for an answer.
        """
        self._store, self._world, self._wait_s = store, world, wait_s
        self._count = 0

    def tell(self, value: Any) -> Any:
        """Collective, though each rank may come late: rank 0's `value`, JSON types, on all ranks."""
        self._count += 1
        if self._store is None:
            return value
        key = f"{self._count}/told"
        if self._world.is_main:
            self._store.set(key, json.dumps(value))
            return value
        return json.loads(self._read(key, PATIENCE_S, "rank 0"))

    def gather(self, value: Any) -> list[Any]:
        """Collective, though each rank may come late: the values of all ranks on rank 0, elsewhere none.

        Raises:
            LaunchError: on rank 0, where a rank does not answer.
        """
        self._count += 1
        if self._store is None:
            return [value]
        key = f"{self._count}/answer"
        if not self._world.is_main:
            self._store.set(f"{key}/{self._world.rank}", json.dumps(value))
            return []
        others = range(1, self._world.world_size)
        return [
            value,
            *(json.loads(self._read(f"{key}/{rank}", self._wait_s, f"rank {rank}")) for rank in others),
        ]

    def _read(self, key: str, wait_s: float, who: str) -> bytes:
        assert self._store is not None
        deadline = time.monotonic() + wait_s
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{who} has not answered for {wait_s:.0f} s: it hangs or has ended; look at the log of its machine."
                )
            time.sleep(LOOK_EVERY_S)
        return self._store.get(key)
