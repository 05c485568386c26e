"""The thread that sends rows to a dashboard, so that a slow or broken one cannot stop the training."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from unetdist.cli.logs import logger
from unetdist.tracking.dashboard import Dashboard, StepRow

# StepRows that may wait with their images. Later rows wait without, because images would fill the memory.
MOST_WAITING = 32

# Seconds that the end of a run waits for a dashboard before it logs that it waits.
QUIET_S = 5.0

# Seconds that it waits for a dashboard that makes progress, because large uploads take a while.
CLOSE_S = 600.0

# Seconds that it waits for a dashboard that does not open or does not take a row.
HUNG_S = 60.0

# Seconds that it waits if a stop was requested, because a kill may follow soon.
HURRY_S = 20.0

# Seconds between two checks.
LOOK_S = 0.1


class Mirror:
    """A dashboard with a thread of its own.

    StepRows that it does not get are not lost: the next start of the run sends them from `metrics.jsonl`.
    """

    def __init__(self, name: str, open_it: Callable[[], Dashboard]) -> None:
        """Open the dashboard in its thread; `name` is for messages."""
        self.name = name
        self.has_all = False  # whether it took all rows and was closed
        self._open = open_it
        self._waiting: SimpleQueue[StepRow | None] = SimpleQueue()
        self._ending: tuple[Mapping[str, float], Path | None] = ({}, None)
        self._has_failed = False
        self._busy_since: float | None = time.monotonic()
        self._thread = Thread(target=self._run, name=f"dashboard-{name}", daemon=True)
        self._thread.start()

    def send(self, row: StepRow) -> None:
        """Queue a row, of which the dashboard gets the part that it lacks."""
        if not self._has_failed:
            self._waiting.put(row if self._waiting.qsize() < MOST_WAITING else replace(row, report=None))

    def end(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Let the dashboard close with these facts after all rows."""
        self._ending = facts, best
        self._waiting.put(None)

    def wait(self, in_hurry: Callable[[], bool], *, since: float) -> None:
        """Wait until the dashboard is closed or takes too long.

        Args:
            in_hurry: returns whether a stop was requested.
            since: start of the wait for all dashboards, on the monotonic clock.
        """
        is_announced = False
        while self._thread.is_alive():
            self._thread.join(LOOK_S)
            waited_s = time.monotonic() - since
            busy_since = self._busy_since
            hung_s = 0.0 if busy_since is None else time.monotonic() - busy_since
            limit_s = HURRY_S if in_hurry() else CLOSE_S
            if waited_s > limit_s or (waited_s > QUIET_S and hung_s > HUNG_S):
                logger.warning(
                    "%s did not take everything within %.0f s; start the same command again to send the rest",
                    self.name,
                    max(waited_s, hung_s),
                )
                return
            if waited_s > QUIET_S and not is_announced:
                is_announced = True
                logger.info("waiting for %s to take the rest", self.name)

    def _run(self) -> None:
        dashboard = None
        try:
            dashboard = self._open()
            self._busy_since = None
            while (row := self._waiting.get()) is not None:
                self._busy_since = time.monotonic()
                if (lacking := dashboard.lacks(row)) is not None:
                    dashboard.send(lacking)
                self._busy_since = None  # the upload at the end may take a while
            dashboard.close(*self._ending)
            self.has_all = True
        except BaseException as error:  # even SystemExit: it must not end days of training
            self._has_failed = True
            logger.warning(
                "%s failed and gets no more rows: %s: %s; the training continues. Start the same command again to send "
                "the rest",
                self.name,
                type(error).__name__,
                error,
            )
            if dashboard is not None:
                self._busy_since = time.monotonic()
                with suppress(Exception):
                    dashboard.close({}, None)
