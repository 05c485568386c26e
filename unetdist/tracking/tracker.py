"""The object through which the trainer logs: terminal, `metrics.jsonl` and dashboards."""

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unetdist.cli import json_records
from unetdist.cli.logs import ProgressBar, console, logger, progress
from unetdist.data.labels import Palette
from unetdist.evaluation.evaluate import Report
from unetdist.storage import files as storage
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import Mirror, StepRow, TrackedRun, check_installed, open_dashboard
from unetdist.tracking.meter import validation_metrics
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.tracking.terminal import scores_table, train_note

# Name of a file in the run's folder: for each dashboard, its last step and the step of its best weights.
MARKS_FILE = "dashboards.json"


class Tracker:
    """Shows on rank 0 how a run goes; on other ranks every method does nothing.

    `metrics.jsonl` has all values, and each dashboard mirrors it. A step is sent once, together with its validation.
    When a run continues, a dashboard gets the rows that it lacks, for example because the process was killed or the
    network was down. Errors here never stop the training.
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
        """Check that the dashboards are installed (else ConfigError); `start` opens them.

        `config` holds the resolved settings to show, as JSON types.
        """
        check_installed(cfg)
        self.cfg = cfg
        self.is_main = accelerator.is_main_process
        self._run_dir = Path(run_dir)
        self._run = TrackedRun(cfg, self._run_dir, run_name, config, palette, step=0)
        self._metrics = MetricsFile(self._run_dir / METRICS_FILE)
        self._mirrors: list[Mirror] = []
        self._marks: dict[str, dict[str, int]] = {}
        self._has_warned = False
        self._screen = ExitStack()
        self._bar: ProgressBar | None = None
        self._step, self._note = 0, ""
        self._last_sent = -1
        self._pending: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._hours_before = 0.0
        self._began = time.monotonic()

    def start(self, *, step: int, max_steps: int, owes_validation: bool = False) -> None:
        """Start the display of a run at `step`, drop the rows of later steps, and open the dashboards.

        `owes_validation` means that the validation of `step` is still to come.
        """
        is_over = step >= max_steps and not owes_validation
        if not is_over:
            bar = progress("training", max_steps, completed=step, enabled=self.is_main, stays=True)
            self._bar = self._screen.enter_context(bar)
        self._step = step
        if not self.is_main:
            return
        self._try(lambda: self._metrics.continue_after(step))
        rows: dict[int, dict[str, float]] = {}
        self._try(lambda: rows.update((at, _finite(values)) for at, values in self._metrics.rows().items()))
        for at, values in rows.items():
            self._hours_before = values.get("time/hours", self._hours_before)
            self._note_best(values, at)
        self._pending = rows.pop(step, {}) if owes_validation else {}
        self._marks = _marks_in(self._run_dir / MARKS_FILE)
        self._last_sent = max(rows, default=-1)
        for name in self.cfg.dashboards:
            # A finished run opens only the dashboards that lack something.
            if is_over and self._marks.get(name, {}).get("step", -1) >= self._last_sent:
                continue
            mirror = Mirror(name, partial(open_dashboard, name, replace(self._run, step=step)))
            for at, values in rows.items():
                mirror.send(StepRow(at, values))
            self._mirrors.append(mirror)

    def show_step(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Move the progress bar to `step`; the values of `Meter.read` become its note."""
        if self._bar is not None:
            self._note = train_note(values) if values else self._note
            self._bar.advance(step - self._step, self._note)
        self._step = step

    def log_train(
        self, values: Mapping[str, float], *, step: int, samples_seen: int, validation_follows: bool = False
    ) -> None:
        """Log the values of `Meter.read`; dashboards get them with the validation of the step, if one follows."""
        if not self.is_main:
            return
        self.show_step(step, values)
        self._log({**values, "train/samples_seen": samples_seen, "time/hours": self._hours}, step)
        if not validation_follows:
            self._send(step)

    def log_validation(self, report: Report, *, step: int, is_best: bool) -> None:
        """Log a validation; `is_best` if no earlier one of this run had a higher mIoU."""
        if not self.is_main:
            return
        console.print(scores_table(report, of=f"step {step}", is_best=is_best))
        values = validation_metrics(report)
        self._note_best(values, step)
        self._log(values, step)
        self._send(step, report)

    def close(self, in_hurry: Callable[[], bool] = lambda: False) -> None:
        """End display and dashboards; waits for uploads, but only briefly if `in_hurry`. May be called twice."""
        self._screen.close()
        self._bar = None
        self._has_warned = False
        self._try(self._metrics.flush)
        facts = {**self._best, "work/hours": self._hours}
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
        """Hours that the run has taken so far, without the time between restarts."""
        return self._hours_before + (time.monotonic() - self._began) / 3600

    def _note_best(self, values: Mapping[str, float], step: int) -> None:
        if (miou := values.get("val/miou", math.nan)) > self._best.get("best/miou", -math.inf):
            self._best = {"best/miou": miou, "best/step": step}

    def _log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._metrics.write(values, step))
        self._pending |= _finite(values)

    def _send(self, step: int, report: Report | None = None) -> None:
        row, self._pending, self._last_sent = StepRow(step, self._pending, report), {}, step
        for mirror in self._mirrors:
            mirror.send(row)

    def _try(self, action: Callable[[], object]) -> None:
        # A full disk must not end days of training.
        try:
            action()
        except Exception as error:
            if not self._has_warned:
                logger.warning(
                    "%s failed: %s: %s; the training continues, and missing lines are written as soon as possible",
                    METRICS_FILE,
                    type(error).__name__,
                    error,
                )
            self._has_warned = True


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _marks_in(file: Path) -> dict[str, dict[str, int]]:
    try:
        return json_records.build(dict[str, dict[str, int]], json_records.parse(storage.read_file(file)))
    except (OSError, ValueError):
        return {}
