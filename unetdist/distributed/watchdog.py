"""Ends a run that hangs, with the stack of every process in its folder, so that the launcher can restart it.

When one process hangs, the others wait for it in a collective until that times out. Each process therefore watches
itself: without progress for `limit_s` seconds it writes its stacks to a file and exits with code 1. A request to stop
is passed on the same way, by a key in the store that the processes share: that works in the middle of a validation.
"""

import atexit
import faulthandler
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from unetdist.cli.logs import logger, tell_launcher
from unetdist.distributed.collectives import World
from unetdist.distributed.rendezvous import Store
from unetdist.distributed.signals import StopSignal

# Seconds between two looks at the main thread and the store; fewer where the limit is short.
POLL_S = 1.0

STACKS_FOLDER = "stacks"
STOP_KEY = "stop"

# Any launcher takes it for a failure, and restarts; faulthandler exits with it too.
EXIT_CODE = 1


class Watchdog:
    """Watches the main thread of this process; with a single process it does nothing."""

    def __init__(
        self,
        store: Store | None,
        world: World,
        *,
        limit_s: float,
        folder: Path,
        stop: StopSignal,
        record: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Start watching.

        `store` is from `rendezvous.open_store` and used by no other thread. After `limit_s` seconds (0: never) without
        a call of `at` the process counts as hung: its stacks go to `stacks/rank_N.txt` in `folder`, and `record`
        receives the message before the process exits. A request to `stop` is passed on in both directions.
        """
        self._limit_s, self._stop, self._record = limit_s, stop, record
        self._poll_s = min(POLL_S, limit_s / 8) if limit_s else POLL_S
        # The first process that exits breaks the collectives of the others. All of them write their stacks after
        # limit_s; this grace lets each do so before the first one exits.
        self._grace_s = 3 * self._poll_s
        self._place, self._since = "start", time.monotonic()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._file: TextIO | None = None
        if store is None or world.world_size == 1:
            return
        self._threads.append(threading.Thread(target=self._pass_on_stop, args=(store,), daemon=True))
        if limit_s:
            path = folder / STACKS_FOLDER / f"rank_{world.rank}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)  # each node may have its own runs_dir
            self._file = path.open("w", encoding="utf-8")
            self._arm(self._file)
            self._threads.append(threading.Thread(target=self._watch, args=(self._file,), daemon=True))
        for thread in self._threads:
            thread.start()
        # a thread inside torch could crash the interpreter's exit
        atexit.register(self.close)

    def at(self, place: str) -> None:
        """Note progress of the main thread and what it does next, such as "step 412: validation"; takes 1 µs."""
        self._place, self._since = place, time.monotonic()

    def close(self) -> None:
        """Stop watching: what follows may take as long as it likes."""
        self._over.set()
        for thread in self._threads:
            thread.join(5.0)
        self._threads = []
        atexit.unregister(self.close)
        if self._file is not None:
            path, is_empty = Path(self._file.name), self._file.tell() == 0
            self._file.close()
            self._file = None
            if is_empty:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not yet empty: other processes close, too
                    path.parent.rmdir()

    def _watch(self, file: TextIO) -> None:
        """Re-arm the timer while the main thread moves; once it does not, end this process."""
        armed = -1.0
        while not self._over.wait(self._poll_s):
            if (since := self._since) != armed:
                self._arm(file)
                armed = since
            elif time.monotonic() - since >= self._limit_s:
                # in a thread of its own: the disk or the terminal may be what hangs
                threading.Thread(target=self._tell, args=(file,), daemon=True).start()
                if not self._over.wait(self._grace_s):
                    os._exit(EXIT_CODE)
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, file: TextIO) -> None:
        """Set a timer in C, which also fires where some library never gives the GIL to `_watch`."""
        faulthandler.dump_traceback_later(self._limit_s + 2 * self._grace_s, exit=True, file=file)

    def _tell(self, file: TextIO) -> None:
        """Write the stacks of this process, and say where they are."""
        file.write(f"{time.ctime()}, node {platform.node()}, process {os.getpid()}, in {self._place}:\n")
        file.flush()
        faulthandler.dump_traceback(file)
        text = (
            f"no progress for {self._limit_s:g} s (trainer.heartbeat_s) in {self._place}; the stacks of each process "
            f"are in {Path(file.name).parent}: the one that is not in a collective hangs. This process exits so that "
            "the launcher can restart it"
        )
        logger.error("%s", text)
        tell_launcher(f"error: {text}")
        self._record(text)

    def _pass_on_stop(self, store: Store) -> None:
        """Tell the others of a request to stop, and hear of theirs."""
        # A store that is gone ends this thread; collectives then fail, or hang until the timer fires.
        with suppress(RuntimeError):
            while not self._over.wait(self._poll_s):
                if self._stop.requested:
                    store.set(STOP_KEY, "")
                    return
                if store.check([STOP_KEY]):
                    self._stop.note_elsewhere()
                    return
