"""The interface of the dashboards, and the thread that sends rows to each."""

import importlib
import importlib.util
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from unetdist.cli.commands import extra
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import Report
from unetdist.storage.files import write_text
from unetdist.tracking.config import DASHBOARDS, TrackingConfig
from unetdist.tracking.meter import dashboard_values

# Rows that may wait with their images. Later rows wait without, because images would fill the memory.
MOST_WAITING = 32

# Seconds that the end of a run waits for a dashboard before it logs that it waits.
QUIET_S = 5.0

# Seconds that it waits before it gives up; large uploads take a while.
CLOSE_S = 300.0

# Seconds that it waits after a request to stop, because a kill may follow soon.
HURRY_S = 20.0

# Seconds between two checks.
LOOK_S = 0.1

# Project of dashboards where neither the settings nor the environment name one.
PROJECT = "unetdist"


def check_installed(cfg: TrackingConfig) -> None:
    """Raise ConfigError if the package of a dashboard is missing."""
    for name in cfg.dashboards:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.tracker ({name}) must be installed; "
                f"run {'pip install wandb' if name == 'wandb' else extra(name)}, or use --tracking.tracker none."
            )


@dataclass(frozen=True)
class StepRow:
    """Everything that is logged at one step. A dashboard gets all of it at once."""

    step: int
    values: Mapping[str, float]
    """Finite numbers by name."""

    report: Report | None = None
    """The validation of this step, if there was one; a dashboard shows its confusion matrix and images."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that dashboards show."""

    cfg: TrackingConfig
    folder: Path
    name: str
    config: Mapping[str, Any]
    """Resolved settings, JSON types."""

    palette: Palette
    step: int
    """Steps that were done when the run started or continued."""

    def own_id(self, file: str) -> str:
        """Read the id in this file of the run's folder, or make one; each restart finds it again."""
        path = self.folder / file
        if not path.exists():
            write_text(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()


class Dashboard(ABC):
    """A mirror of `metrics.jsonl`: one thread sends it the rows after `last_step`, in the order of steps."""

    last_step = -1
    """Last step that it held when the run started or continued; -1 for none."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @property
    def project(self) -> str | None:
        """The project that the run belongs to; None leaves it to the dashboard."""
        return self.run.cfg.project or PROJECT

    def start(
        self, kind: LoggerType, *where: str, config: Mapping[str, Any] | None = None, **options: Any
    ) -> GeneralTracker:
        """Start Accelerate's tracker of one kind, in the folder `where` if it needs one, and show it `config`."""
        # Not `Accelerator.init_trackers`, which starts all kinds together: one that fails would take the others along.
        self.tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[kind.value](self.project, *where, **options)
        self.tracker.start()
        if config is not None:
            self.tracker.store_init_configuration(dict(config))
        return self.tracker.tracker

    @abstractmethod
    def send(self, row: StepRow) -> None:
        """Show a row: its values, and for a validation the confusion matrix and images."""

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End the run there; waits until everything is stored or uploaded.

        Args:
            facts: summary of the run so far: `best/miou`, `best/step`, `work/hours`.
            best: folder of the best weights, if the dashboard keeps files and does not have them yet.
        """
        self.tracker.finish()

    def drawn(self, report: Report | None) -> dict[str, tuple[np.ndarray, str]]:
        """Draw a validation: images by name, each with its caption.

        They are the confusion matrix, and each example next to its mask and prediction; examples get one size.
        """
        if report is None:
            return {}
        names, colors = self.run.palette.class_names, self.run.palette.colors
        panels = [draw.gallery([("", each.image, each.mask, each.pred)], colors, names) for each in report.examples]
        panels = draw.pad_alike(panels, 255) if panels else []
        images = {"val/confusion": (draw.heat_map(report.confusion, names), "")}
        for number, (panel, example) in enumerate(zip(panels, report.examples, strict=True)):
            images[f"val/pictures/{number}"] = panel, example.caption
        return images


def open_dashboard(name: str, run: TrackedRun) -> Dashboard:
    """Start or continue a run in a dashboard, whose package is imported only now."""
    module, kind = DASHBOARDS[name]
    dashboard: Dashboard = getattr(importlib.import_module(module), kind)(run)
    return dashboard


class Mirror:
    """A dashboard with a thread of its own.

    Rows that it does not get are not lost: the next start of the run sends them from `metrics.jsonl`.
    """

    def __init__(self, name: str, open_it: Callable[[], Dashboard]) -> None:
        """Open the dashboard in its thread; `name` is for messages."""
        self.name = name
        self.has_all = False  # whether it took all rows and was closed
        self._waiting: SimpleQueue[StepRow | None] = SimpleQueue()
        self._ending: tuple[Mapping[str, float], Path | None] = ({}, None)
        self._has_failed = False
        self._thread = Thread(target=self._run, args=(open_it,), name=f"dashboard-{name}", daemon=True)
        self._thread.start()

    def send(self, row: StepRow) -> None:
        """Queue a row; the dashboard gets it unless it holds this step already."""
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
        self._thread.join(max(0.0, since + QUIET_S - time.monotonic()))
        if self._thread.is_alive():
            logger.info("waiting for %s to take the rest", self.name)
        while self._thread.is_alive():
            self._thread.join(LOOK_S)
            waited_s = time.monotonic() - since
            if waited_s > (HURRY_S if in_hurry() else CLOSE_S):
                logger.warning(
                    "%s did not take everything within %.0f s; start the same command again to send the rest",
                    self.name,
                    waited_s,
                )
                return

    def _run(self, open_it: Callable[[], Dashboard]) -> None:
        dashboard = None
        try:
            dashboard = open_it()
            while (row := self._waiting.get()) is not None:
                if row.step > dashboard.last_step:
                    dashboard.send(replace(row, values=dashboard_values(row.values)))
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
                with suppress(Exception):
                    dashboard.close({}, None)
