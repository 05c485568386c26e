"""Which shards are this process's own, where several write one data set."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unetdist.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process's place among those that were given the same command."""

    rank: int = 0
    world_size: int = 1
    is_launched: bool = False
    """By one launcher, at one time: rank 0 waits for the others. Else whoever finishes last does what remains."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank ({self.rank}) must be from 0 to world_size - 1 ({self.world_size - 1}); give each of the "
                f"{self.world_size} processes another one."
            )

    @property
    def is_all(self) -> bool:
        """There are no other processes."""
        return self.world_size == 1

    def of(self, jobs: Sequence[T]) -> Sequence[T]:
        """This process's own."""
        return jobs[self.rank :: self.world_size]


ALONE = Share()


def find_share(
    env: Mapping[str, str] = os.environ, *, rank: int | None = None, world_size: int | None = None
) -> Share:
    """From what was given, else from what `accelerate launch`, torchrun or a SLURM array tell in `env`.

    Raises:
        ConfigError: One of rank and world_size without the other, a rank beyond the world, or an array whose
            numbers have gaps.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("--rank and --world-size go together; give both, or neither.")
    if rank is not None and world_size is not None:
        return Share(rank, world_size)
    launched, in_array = int(env.get("WORLD_SIZE", 1)), int(env.get("SLURM_ARRAY_TASK_COUNT", 1))
    place = int(env.get("RANK", 0)) if launched > 1 else 0
    if in_array == 1:
        return Share(place, launched, is_launched=launched > 1)
    task, first, step = (
        int(env.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1))
    )
    number, rest = divmod(task - first, step)
    if rest or not 0 <= number < in_array:
        raise ConfigError(
            f"the array of {in_array} tasks has gaps: its numbers begin at {first} and this one is {task}; use "
            "--array=0-N without gaps (finished shards are kept, a task that has nothing to do ends at once)."
        )
    return Share(number * launched + place, in_array * launched)
