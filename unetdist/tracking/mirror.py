"""The thread that talks to a dashboard."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from unetdist.cli.logs import logger
from unetdist.tracking.dashboard import Dashboard, Row

MOST_WAITING = 32
"""Rows that wait with their pictures for a dashboard that does not answer; of more, the numbers wait alone."""

QUIET_S = 5.0
"""How long the end of a run waits for a dashboard without a word."""

CLOSE_S = 600.0
"""How long it waits for one that takes what is left: large uploads may take a while."""

HUNG_S = 60.0
"""How long for one that does not open, or does not take a row: nobody answers there."""

HURRY_S = 20.0
"""How long where the run was asked to stop: whoever asks may soon kill."""

LOOK_S = 0.1
"""Between two looks at whether it is done."""


class Mirror:
    """A dashboard, told from a thread of its own: one that hangs holds up nothing, one that fails is left out.

    What it was not told is no loss: it stands in `metrics.jsonl`, from which the next start of the run sends it.
    """

    def __init__(self, name: str, open_it: Callable[[], Dashboard]) -> None:
        """Open the dashboard, in its thread; `name` is for messages."""
        self.name = name
        self.has_all = False
        """Whether it was closed, and took all that it was told."""
        self._open = open_it
        self._waiting: SimpleQueue[Callable[[Dashboard], None] | None] = SimpleQueue()
        self._has_failed = False
        self._busy_since: float | None = time.monotonic()
        self._thread = Thread(target=self._run, name=f"dashboard-{name}", daemon=True)
        self._thread.start()

    def send(self, row: Row) -> None:
        """Show what the dashboard does not hold yet of a row."""
        told = row if self._waiting.qsize() < MOST_WAITING else replace(row, shown=None)

        def send(dashboard: Dashboard) -> None:
            if (lacking := dashboard.lacks(told)) is not None:
                dashboard.send(lacking)

        if not self._has_failed:
            self._waiting.put(send)

    def end(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Ask for `Dashboard.close` after all that was told."""
        self._waiting.put(partial(self._close, facts, best))
        self._waiting.put(None)

    def wait(self, in_hurry: Callable[[], bool], *, since: float) -> None:
        """Wait until it is closed, unless it takes too long.

        Args:
            in_hurry: whether the run was asked to stop.
            since: when the waiting for all dashboards began, on the monotonic clock.
        """
        is_told = False
        while self._thread.is_alive():
            self._thread.join(LOOK_S)
            waited_s = time.monotonic() - since
            busy_since = self._busy_since
            hung_s = 0.0 if busy_since is None else time.monotonic() - busy_since
            limit_s = HURRY_S if in_hurry() else CLOSE_S
            if waited_s > limit_s or (waited_s > QUIET_S and hung_s > HUNG_S):
                logger.warning(
                    "%s did not take all within %.0f s; the rest is sent when the same command is started again",
                    self.name,
                    max(waited_s, hung_s),
                )
                return
            if waited_s > QUIET_S and not is_told:
                is_told = True
                logger.info("waiting for %s to take what is left", self.name)

    def _close(self, facts: Mapping[str, float], best: Path | None, dashboard: Dashboard) -> None:
        self._busy_since = None  # An upload may take its time.
        dashboard.close(facts, best)

    def _run(self) -> None:
        dashboard = None
        try:
            dashboard = self._open()
            self._busy_since = None
            while (action := self._waiting.get()) is not None:
                self._busy_since = time.monotonic()
                action(dashboard)
                self._busy_since = None
            self.has_all = True
        except BaseException as error:  # whatever it is, an exit too, it must not end days of training
            self._has_failed = True
            logger.warning(
                "%s failed and is left out: %s: %s; training continues, and the same command, started again, sends "
                "what it lacks",
                self.name,
                type(error).__name__,
                error,
            )
            if dashboard is not None:
                self._busy_since = time.monotonic()
                with suppress(Exception):
                    dashboard.close({}, None)
