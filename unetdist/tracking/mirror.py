"""The thread that talks to a dashboard."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from unetdist.logs import logger
from unetdist.tracking.dashboard import Dashboard, Row

MOST_WAITING = 32
"""Rows that wait with their pictures for a dashboard that does not answer; of more, the numbers wait alone."""

QUIET_S = 5.0
"""How long the end of a run waits for a dashboard without a word."""


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

    def close(self, facts: Mapping[str, float], best: Path | None, *, wait_s: float) -> None:
        """`Dashboard.close` after all that was told; waits so long for it at most."""
        self._waiting.put(lambda dashboard: dashboard.close(facts, best))
        self._waiting.put(None)
        self._thread.join(min(QUIET_S, wait_s))
        if self._thread.is_alive():
            logger.info("waiting up to %.0f s for %s to take what is left", wait_s, self.name)
            self._thread.join(max(0.0, wait_s - QUIET_S))
        if self._thread.is_alive():
            logger.warning(
                "%s did not take all within %.0f s; the rest is sent when the same command is started again",
                self.name,
                wait_s,
            )

    def _run(self) -> None:
        dashboard = None
        try:
            dashboard = self._open()
            while (action := self._waiting.get()) is not None:
                action(dashboard)
            self.has_all = True
        except Exception as error:  # whatever it is, it must not end days of training
            self._has_failed = True
            logger.warning(
                "%s failed and is left out: %s: %s; training goes on", self.name, type(error).__name__, error
            )
            if dashboard is not None:
                with suppress(Exception):
                    dashboard.close({}, None)
