"""One object that the trainer tells how it goes."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unetdist.cli import json_records
from unetdist.cli.logs import ProgressBar, console, logger, progress
from unetdist.data.labels import Palette
from unetdist.evaluation.examples import Picture
from unetdist.storage import files as storage
from unetdist.tracking.config import TrackingConfig, check_installed, open_dashboard
from unetdist.tracking.dashboard import Row, Shown, TrackedRun
from unetdist.tracking.meter import TrainStats
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.tracking.mirror import Mirror
from unetdist.tracking.names import Validation, train_metrics, validation_metrics
from unetdist.tracking.terminal import scores_table, train_note

MARKS_FILE = "dashboards.json"
"""In the run's folder: of each dashboard, the last step that it holds, and the step of the best weights there."""


class Tracker:
    """Tells the user, on rank 0, how a run goes; on other ranks every method does nothing.

    `metrics.jsonl` holds all numbers; each dashboard is a mirror of it. A step is sent once, with its validation where
    it has one. What a dashboard lacks when a run goes on, because the process was killed or the network was away, is
    sent from the file, and what it holds already is not sent again. Nothing that fails here stops the training.
    """

    def __init__(
        self,
        cfg: TrackingConfig,
        accelerator: Accelerator,
        *,
        run_dir: str | os.PathLike[str],
        run_name: str,
        config: Mapping[str, Any],
        palette: Palette,
    ) -> None:
        """Prepare what `start` opens.

        Args:
            cfg: settings.
            accelerator: makes the dashboards' trackers.
            run_dir: folder of the run; all files lie below it.
            run_name: what the dashboards call the run.
            config: resolved settings to show beside it, JSON types.
            palette: classes and colours.

        Raises:
            ConfigError: a dashboard's package is not installed.
        """
        check_installed(cfg)
        self.cfg = cfg
        self.is_main = accelerator.is_main_process
        self._run_dir = Path(run_dir)
        self._run = partial(
            TrackedRun,
            project=cfg.project,
            mode=cfg.mode,
            folder=self._run_dir,
            name=run_name,
            config=config,
            palette=palette,
        )
        self._metrics = MetricsFile(self._run_dir / METRICS_FILE)
        self._mirrors: list[Mirror] = []
        self._marks: dict[str, dict[str, int]] = {}
        self._has_warned = False
        self._screen = ExitStack()
        self._bar: ProgressBar | None = None
        self._step = 0
        self._last_sent = -1
        self._pending: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._hours_before = 0.0
        self._began = time.monotonic()

    def start(self, *, step: int, max_steps: int, owes_validation: bool = False) -> None:
        """Show the progress of a run that stands at `step`; forget what was logged of later ones.

        Dashboards are opened, and are sent what they lack of the steps before. `owes_validation`: that of `step` is
        still to come. Of a run that has ended only those are opened that lack something.
        """
        is_over = step >= max_steps and not owes_validation
        if not is_over:
            bar = progress("training", max_steps, completed=step, enabled=self.is_main)
            self._bar = self._screen.enter_context(bar)
        self._step = step
        if not self.is_main:
            return
        self._try(lambda: self._metrics.continue_after(step))
        rows: dict[int, dict[str, float]] = {}
        self._try(lambda: rows.update(self._metrics.rows()))
        for at, values in rows.items():
            self._hours_before = values.get("time/hours", self._hours_before)
            self._note_best(values, at)
        self._pending = rows.pop(step, {}) if owes_validation else {}
        self._marks = _marks_in(self._run_dir / MARKS_FILE)
        self._last_sent = max(rows, default=-1)
        for name in self.cfg.dashboards:
            if is_over and self._marks.get(name, {}).get("step", -1) >= self._last_sent:
                continue
            mirror = Mirror(name, partial(open_dashboard, name, self._run(step=step)))
            for at, values in rows.items():
                mirror.send(Row(at, values))
            self._mirrors.append(mirror)

    def log_train(
        self, stats: TrainStats, *, step: int, samples_seen: int, validation_follows: bool = False
    ) -> None:
        """Log what was measured since the last call; dashboards hear of it with the validation of that step."""
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.advance(step - self._step, train_note(stats))
        self._step = step
        self._log({**train_metrics(stats, samples_seen=samples_seen), "time/hours": self._hours}, step)
        if not validation_follows:
            self._send(step)

    def log_validation(
        self,
        report: Validation,
        *,
        step: int,
        pictures: Sequence[Picture],
        is_best: bool,
    ) -> None:
        """Log a validation.

        Args:
            report: what it came to.
            step: optimizer steps done.
            pictures: examples.
            is_best: whether no validation of this run had a higher mIoU.
        """
        if not self.is_main:
            return
        console.print(scores_table(report, of=f"step {step}", is_best=is_best))
        values = validation_metrics(report)
        self._note_best(values, step)
        self._log(values, step)
        self._send(step, Shown(report.scores, report.confusion, pictures))

    def close(self, in_hurry: Callable[[], bool] = lambda: False) -> None:
        """End the run's display and files; waits for uploads, not so long `in_hurry`. May be called twice."""
        self._screen.close()
        self._bar = None
        self._has_warned = False
        self._try(self._metrics.flush)
        facts = {**self._best, "time/hours": self._hours}
        best, best_step = self._run_dir / "best", int(self._best.get("best/step", -1))
        for mirror in self._mirrors:
            is_due = best.is_dir() and self._marks.get(mirror.name, {}).get("best", -1) < best_step
            mirror.end(facts, best if is_due else None)
        since = time.monotonic()
        for mirror in self._mirrors:
            mirror.wait(in_hurry, since=since)
            if mirror.has_all:
                self._marks[mirror.name] = {"step": self._last_sent, "best": best_step}
        if self._mirrors:
            self._try(lambda: storage.write_json(self._run_dir / MARKS_FILE, self._marks))
        self._mirrors = []

    @property
    def _hours(self) -> float:
        """That the run has taken up to now, without the time between its restarts."""
        return self._hours_before + (time.monotonic() - self._began) / 3600

    def _note_best(self, values: Mapping[str, float], step: int) -> None:
        if (miou := values.get("val/miou", math.nan)) > self._best.get("best/miou", -math.inf):
            self._best = {"best/miou": miou, "best/step": step}

    def _log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._metrics.write(values, step))
        self._pending |= {name: value for name, value in values.items() if math.isfinite(value)}

    def _send(self, step: int, shown: Shown | None = None) -> None:
        row, self._pending, self._last_sent = Row(step, self._pending, shown), {}, step
        for mirror in self._mirrors:
            mirror.send(row)

    def _try(self, action: Callable[[], object]) -> None:
        """Do something with the run's files; a full disk must not end days of training."""
        try:
            action()
        except Exception as error:
            if not self._has_warned:
                logger.warning(
                    "%s failed: %s: %s; training goes on, and what it lacks is written once that is possible",
                    METRICS_FILE,
                    type(error).__name__,
                    error,
                )
            self._has_warned = True


def _marks_in(file: Path) -> dict[str, dict[str, int]]:
    try:
        return json_records.build(dict[str, dict[str, int]], json_records.parse(storage.read_file(file)))
    except (OSError, ValueError):
        return {}
