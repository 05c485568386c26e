"""Which process the others wait for: a judgement over what each of them says."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a process says of itself.

    Attributes:
        number: beats so far.
        moves: places that its main thread has come to; equally many on each rank when all is well.
        place: where the main thread is.
        still_s: seconds since it last moved.
        frame: file, line and function, once it has not moved for long.
        stop: whether this process was asked to stop.
        left: whether it has ended as it should; its last beat.
        node: name of its machine.
        pid: number of the process there.
    """

    number: int = 0
    moves: int = 0
    place: str = "starting"
    still_s: float = 0.0
    frame: str = ""
    stop: bool = False
    left: bool = False
    node: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)


UNHEARD = Beat(node="unknown", pid=0)
"""Of a process that has not spoken yet."""


class Silence:
    """How long something has been the same, without the time in which this process itself was stopped."""

    def __init__(self, every_s: float) -> None:
        self._longest_s = 4 * every_s
        self._seen: object = None
        self._looked = time.monotonic()
        self._silent_s = 0.0

    def of(self, value: object) -> float:
        """Seconds since `value` last differed; to be called every `every_s` seconds."""
        now = time.monotonic()
        self._silent_s += min(now - self._looked, self._longest_s)
        self._looked = now
        if value != self._seen:
            self._seen, self._silent_s = value, 0.0
        return self._silent_s


class Judge:
    """Names the processes that hang."""

    def __init__(self, world_size: int, limit_s: float, every_s: float) -> None:
        """Judge `world_size` processes by their beats; `limit_s` 0 finds no fault with any."""
        self.world_size, self._limit_s = world_size, limit_s
        self._silences = [Silence(every_s) for _ in range(world_size)]

    def hear(self, beats: Mapping[int, Beat]) -> str | None:
        """Judge the latest beat of each rank that has ever given one; the reason to end, if there is one."""
        heard = {rank: beats.get(rank, UNHEARD) for rank in range(self.world_size)}
        silent_s = {rank: self._silences[rank].of(beat.number) for rank, beat in heard.items()}
        still_s = {rank: beat.still_s + silent_s[rank] for rank, beat in heard.items()}
        if not self._limit_s:
            return None
        guilty = self._guilty(heard, silent_s, still_s)
        named = [describe(rank, heard[rank], silent_s[rank], still_s[rank]) for rank in guilty[:MOST_NAMED]]
        more = [f"and {len(guilty) - MOST_NAMED} more"] if len(guilty) > MOST_NAMED else []
        return "; ".join(named + more) or None

    def _guilty(
        self, heard: Mapping[int, Beat], silent_s: Mapping[int, float], still_s: Mapping[int, float]
    ) -> list[int]:
        """Who is silent, else who has come least far, if all that have come no farther stand still."""
        living = [rank for rank, beat in heard.items() if not beat.left]
        silent = [rank for rank in living if silent_s[rank] >= self._limit_s]
        if silent or not living:
            return silent
        fewest = min(beat.moves for beat in heard.values())
        behind = [rank for rank, beat in heard.items() if beat.moves == fewest]
        waited_for = [rank for rank in behind if rank in living]
        nobody_waits = waited_for == living and len(living) == 1  # such as for the last upload of rank 0
        if nobody_waits or any(still_s[rank] < self._limit_s for rank in waited_for or living):
            return []
        dumb = [rank for rank in waited_for if silent_s[rank] >= self._limit_s / 2]
        return dumb or waited_for or behind


def describe(rank: int, beat: Beat, silent_s: float, still_s: float) -> str:
    """Who it is, what is wrong with it, and where it was last."""
    if beat.left:
        what = "has ended, and the others wait for it"
    elif silent_s >= still_s / 2:
        what = f"has not been heard of for {silent_s:.0f} s (stopped, killed, or its machine or network is gone), last"
    else:
        what = f"has not moved for {still_s:.0f} s"
    at = f"; at {beat.frame}" if beat.frame else ""
    return f"rank {rank} (node {beat.node}, pid {beat.pid}) {what}: {beat.place}{at}"
