"""Finds the process that hangs, and ends all of them so that the job can be restarted.

The others hang with it, in a collective, and would do so until its time-out. So a thread of each process writes every
second to the store that they share how far its main thread is; rank 0 compares, and writes its findings on a board that
all read. A request to stop travels the same way. Silence of rank 0, or of the store, each finds out by itself.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from unetdist.cli.logs import logger, tell_launcher
from unetdist.distributed.collectives import World
from unetdist.distributed.rendezvous import Store
from unetdist.distributed.signals import SignalWatch
from unetdist.distributed.verdict import UNHEARD, Beat, Judge, Silence, describe

EVERY_S = 1.0
"""Between two beats; less where the limit is short."""

FIRST_EVERY_S = 0.1
"""Until rank 0 is heard for the first time: only then can this process name the machine that it loses."""

TELL_WITHIN_S = 5.0
"""For the last words of a process: the log, or the disk, may be what hangs."""

ROOT = Path(__file__).parents[2]
OWN_FOLDERS = (ROOT / "unetdist", ROOT / "launch")


class Heartbeat:
    """Signs of life of this process, and what follows when some process gives none.

    Without a store (one process) it does nothing.
    """

    def __init__(
        self,
        store: Store | None,
        world: World,
        *,
        limit_s: float,
        stop: SignalWatch,
        record: Callable[[str], object] = lambda _: None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """Begin to beat.

        Args:
            store: from `unetdist.distributed.rendezvous.open_store`, for nobody else.
            world: this process among the others.
            limit_s: seconds that a process may stay in one place while the others wait for it; 0: as long as it likes.
            stop: told when another process was asked to stop; its own request is told to the others.
            record: given the reason before this process ends, such as to keep it in the run folder.
            leave: ends this process, whose main thread hangs.
        """
        self._rank, self._limit_s, self._stop = world.rank, limit_s, stop
        self._record, self._leave = record, leave
        self._every_s = min(EVERY_S, limit_s / 8) if limit_s else EVERY_S
        self._moves, self._place, self._since = 0, "starting", time.monotonic()
        self._beats, self._rounds = 0, 0
        self._zero = UNHEARD
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        if store is not None and world.world_size > 1:
            self._store = store
            self._judge = Judge(world.world_size, limit_s, self._every_s)
            self._board_silence = Silence(self._every_s)
            self._start()

    def at(self, place: str) -> None:
        """Say where the main thread is, such as "step 412: waiting for data"; costs a microsecond.

        Call it equally often on every rank: who has called it least is the one that the others wait for.
        """
        self._moves += 1
        self._place, self._since = place, time.monotonic()

    def within(self, place: str) -> None:
        """Say that the main thread moves within the place of the last `at`; ranks need not do so equally often."""
        self._place, self._since = place, time.monotonic()

    def close(self) -> None:
        """Tell the others that this process leaves as it should."""
        self._over.set()
        for thread in self._threads:
            thread.join(TELL_WITHIN_S)  # one inside torch could crash the interpreter's exit
        self._threads = []
        atexit.unregister(self.close)

    def _start(self) -> None:
        with suppress(RuntimeError):
            self._round()  # before it can hang: the others know then who it is
        for loop in (self._talk, self._watch):
            thread = threading.Thread(target=loop, name=f"heartbeat{loop.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        atexit.register(self.close)

    def _talk(self) -> None:
        """Say and hear, round by round; ends where the store does, which `_watch` will find silent."""
        with suppress(RuntimeError):
            while not self._over.wait(self._pause_s):
                if reason := self._round():
                    self._end(reason)
                    return
            self._say(left=True)
            if self._rank == 0:
                self._write_board(left=True)

    def _watch(self) -> None:
        """See to it that `_talk` gets answers: against a store that hangs, torch's time-outs do not hold."""
        silence = Silence(self._every_s)
        while not self._over.wait(self._every_s):
            silent_s = silence.of(self._rounds)
            if self._limit_s and silent_s >= self._limit_s:
                self._end(
                    f"the store in which the processes meet, on the machine of rank 0 (node {self._zero.node}), has "
                    f"not answered for {silent_s:.0f} s: that machine, its launcher or the network is gone"
                )

    @property
    def _pause_s(self) -> float:
        return min(FIRST_EVERY_S, self._every_s) if self._zero is UNHEARD else self._every_s

    def _round(self) -> str | None:
        """Say how far this process is and hear of the others; the reason to end, if there is one."""
        self._say()
        reason = self._compare() if self._rank == 0 else self._read_board()
        self._rounds += 1
        return reason

    def _say(self, *, left: bool = False) -> None:
        self._beats += 1
        still_s = time.monotonic() - self._since
        beat = Beat(
            number=self._beats,
            moves=self._moves,
            place=self._place,
            still_s=still_s,
            frame=main_frame() if self._limit_s and still_s >= self._limit_s / 2 else "",
            stop=self._stop.requested,
            left=left,
        )
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))

    def _compare(self) -> str | None:
        """Rank 0: hear all, and tell all what follows."""
        beats = {
            rank: Beat(**json.loads(text))
            for rank in range(self._judge.world_size)
            if (text := self._read(f"beat/{rank}"))
        }
        self._zero = beats[0]
        if any(beat.stop for beat in beats.values()):
            self._stop.note_elsewhere()
        reason = self._judge.hear(beats)
        self._write_board(reason=reason)
        return reason

    def _write_board(self, *, reason: str | None = None, left: bool = False) -> None:
        board = {
            "beat": asdict(self._zero),
            "reason": reason,
            "stop": self._stop.requested_anywhere,
            "left": left,
        }
        self._store.set("board", json.dumps(board))

    def _read_board(self) -> str | None:
        board = json.loads(self._read("board") or "{}")
        if board.get("left"):
            return None
        if board.get("stop"):
            self._stop.note_elsewhere()
        self._zero = Beat(**board["beat"]) if board else UNHEARD
        silent_s = self._board_silence.of(self._zero.number)
        if self._limit_s and silent_s >= self._limit_s:
            return describe(0, self._zero, silent_s, silent_s)
        reason: str | None = board.get("reason")
        return reason

    def _read(self, key: str) -> bytes:
        """What is written there, or nothing: `get` alone would wait."""
        return self._store.get(key) if self._store.check([key]) else b""

    def _end(self, reason: str) -> None:
        """End this process, whose main thread hangs or will."""
        text = f"{reason}; this process ends so that the job can be restarted"

        def tell() -> None:
            logger.error("%s", text)
            tell_launcher(f"error: {text}")
            self._record(reason)

        teller = threading.Thread(target=tell, name="heartbeat-tell", daemon=True)
        teller.start()
        teller.join(TELL_WITHIN_S)
        if self._rank == 0:
            self._over.wait(
                3 * self._every_s
            )  # for the others to read it: the store may end with this process
        self._leave(1)
        self._over.set()


def main_frame() -> str:
    """Where in this project the main thread is: "unetdist/data/reader.py:120 in read"; else where it is at all."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename).absolute()
        if any(path.is_relative_to(folder) for folder in OWN_FOLDERS):
            return f"{path.relative_to(ROOT).as_posix()}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    if innermost is None:
        return ""
    code = innermost.f_code
    return f"{code.co_filename}:{innermost.f_lineno} in {code.co_name}"
