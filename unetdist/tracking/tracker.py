"""One object that the trainer tells how it goes."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.logs import ProgressBar, console, logger, progress
from unetdist.meter import TrainStats
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.tracking.names import Validation, train_metrics, validation_metrics
from unetdist.tracking.terminal import scores_table, train_note
from unetdist.tracking.wandb_run import Mode, Picture, WandbRun


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run can be watched, beside the terminal and `metrics.jsonl`."""

    tracker: Literal["wandb", "none"] = "wandb"
    """Dashboard."""

    project: str = "unetdist"
    """The dashboard's project, which groups runs."""

    mode: Mode = "auto"
    """`auto`: online with an account, else offline; the environment variable WANDB_MODE is obeyed."""

    num_pictures: int = 8
    """Validation pictures with their masks that go to the dashboard at each validation; 0: none."""

    def __post_init__(self) -> None:
        if self.num_pictures < 0:
            raise ConfigError(
                f"tracking.num_pictures ({self.num_pictures}) must be at least 0; use 0 for no pictures."
            )
        if not self.project:
            raise ConfigError("tracking.project ('') must be a name; use unetdist.")


class Tracker:
    """Tells the user, on rank 0, how a run goes; on other ranks every method does nothing.

    Nothing that fails here stops the training: it is said once, and the run goes on without.
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
        """Open a run, or continue the one in `run_dir`.

        Args:
            cfg: settings.
            accelerator: carries the dashboard's tracker.
            run_dir: folder of the run; all files lie below it.
            run_name: what the dashboard calls the run.
            config: resolved settings to show beside it, JSON types.
            palette: classes and colours.

        Raises:
            ConfigError: the dashboard's package is not installed.
        """
        if cfg.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "tracking.tracker (wandb) must be installed; run pip install wandb, "
                "or use --tracking.tracker none."
            )
        self.cfg, self.palette = cfg, palette
        self.is_main = accelerator.is_main_process
        self._metrics = MetricsFile(Path(run_dir) / METRICS_FILE)
        self._wandb: WandbRun | None = None
        self._failed: set[str] = set()
        self._screen = ExitStack()
        self._bar: ProgressBar | None = None
        self._step = 0
        if self.is_main and cfg.tracker == "wandb":

            def start() -> None:
                self._wandb = WandbRun(
                    accelerator,
                    project=cfg.project,
                    mode=cfg.mode,
                    run_dir=Path(run_dir),
                    run_name=run_name,
                    config=config,
                )

            self._try("wandb", start)

    def start(self, *, step: int, max_steps: int) -> None:
        """Show the progress of a run that stands at `step`; forget what was logged of later ones."""
        bar = progress("training", max_steps, completed=step, enabled=self.is_main)
        self._bar, self._step = self._screen.enter_context(bar), step
        if self.is_main:
            self._try(METRICS_FILE, lambda: self._metrics.continue_after(step))

    def log_train(self, stats: TrainStats, *, step: int, samples_seen: int) -> None:
        """Log what was measured since the last call."""
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.advance(step - self._step, train_note(stats))
            self._step = step
        self._log(train_metrics(stats, samples_seen=samples_seen), step)

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
            pictures: examples, of which the first `num_pictures` are shown.
            is_best: whether no validation of this run had a higher mIoU.
        """
        if not self.is_main:
            return
        console.print(scores_table(report, of=f"step {step}", is_best=is_best))
        self._log(validation_metrics(report), step)
        if (run := self._wandb) is not None:
            shown = pictures[: self.cfg.num_pictures]
            self._try(
                "wandb", lambda: run.log_scores(report.scores, report.confusion, shown, self.palette, step)
            )

    def close(self) -> None:
        """End the run's display and files; waits for uploads. May be called twice."""
        self._screen.close()
        if (run := self._wandb) is not None:
            self._try("wandb", run.close)
            self._wandb = None

    def _log(self, values: Mapping[str, float], step: int) -> None:
        self._try(METRICS_FILE, lambda: self._metrics.write(values, step))
        if (run := self._wandb) is not None:
            self._try("wandb", lambda: run.log(values, step))

    def _try(self, what: str, action: Callable[[], None]) -> None:
        """Run `action`; a watcher's failure, whatever it is, must not end days of training."""
        try:
            action()
        except Exception as error:
            if what == "wandb":
                self._wandb = None
            if what not in self._failed:
                logger.warning(
                    "%s failed and is left out: %s: %s; training goes on", what, type(error).__name__, error
                )
            self._failed.add(what)
