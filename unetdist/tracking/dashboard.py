"""Settings of the dashboards, and the interface that all of them have."""

import importlib
import importlib.util
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from unetdist.data import drawing as draw
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import Report
from unetdist.storage.files import write_text

WandbMode = Literal["auto", "online", "offline"]

# Module, class and argument of pip install, by the name of the setting, which is also the package's name.
DASHBOARDS = {
    "wandb": ("unetdist.tracking.wandb_run", "WandbRun", "wandb"),
    "trackio": ("unetdist.tracking.local_dashboards", "TrackioRun", "-e '.[trackio]'"),
    "tensorboard": ("unetdist.tracking.local_dashboards", "TensorBoardRun", "-e '.[tensorboard]'"),
    "mlflow": ("unetdist.tracking.local_dashboards", "MlflowRun", "-e '.[mlflow]'"),
}


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run can be watched, in addition to the terminal and `metrics.jsonl`."""

    tracker: str | list[str] = "wandb"
    """Dashboard: wandb, trackio, tensorboard, mlflow or none; several with commas: wandb,tensorboard."""

    project: str = "unetdist"
    """The dashboard's project, which groups runs."""

    mode: WandbMode = "auto"
    """Mode of wandb. `auto`: online with an account, otherwise offline; the environment variable WANDB_MODE wins."""

    num_pictures: int = 8
    """Validation pictures to show at each validation, half of them the first ones and half the worst; 0 for none."""

    def __post_init__(self) -> None:
        names = self.dashboards
        unknown = [name for name in names if name not in DASHBOARDS]
        if unknown or (not names and self._names != ("none",)):
            raise ConfigError(
                f"tracking.tracker ({', '.join(self._names)}) must be one or several of {', '.join(DASHBOARDS)}, "
                "or none; use wandb."
            )
        if self.num_pictures < 0:
            raise ConfigError(f"tracking.num_pictures ({self.num_pictures}) must be at least 0; use 0 for no pictures.")
        if not self.project:
            raise ConfigError("tracking.project ('') must be a name; use unetdist.")

    @property
    def _names(self) -> tuple[str, ...]:
        names = self.tracker.split(",") if isinstance(self.tracker, str) else self.tracker
        return tuple(dict.fromkeys(name.strip() for name in names))

    @property
    def dashboards(self) -> tuple[str, ...]:
        """Names of the dashboards, without repeats."""
        return () if self._names == ("none",) else self._names


def check_installed(cfg: TrackingConfig) -> None:
    """Raise ConfigError if the package of a dashboard is missing."""
    for name in cfg.dashboards:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.tracker ({name}) must be installed; run pip install {DASHBOARDS[name][2]}, "
                "or use --tracking.tracker none."
            )


@dataclass(frozen=True)
class StepRow:
    """Everything that is logged at one step. A dashboard gets all of it at once."""

    step: int
    values: Mapping[str, float]
    """Finite numbers by name."""

    report: Report | None = None
    """The validation of this step, if there was one; a dashboard shows its confusion matrix and images."""

    def without(self, names: Collection[str]) -> "StepRow | None":
        """Drop the values in `names`; None if no others are left."""
        left = {name: value for name, value in self.values.items() if name not in names}
        return replace(self, values=left) if left else None


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that dashboards show."""

    project: str
    mode: WandbMode
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

    def open_tracker(
        self, kind: LoggerType, *where: str, config: Mapping[str, Any] | None = None, **options: Any
    ) -> GeneralTracker:
        """Start Accelerate's tracker of one kind, in the folder `where` if it needs one, and show it `config`."""
        # Not `Accelerator.init_trackers`, which starts all kinds together: one that fails would take the others along.
        tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[kind.value](self.project, *where, **options)
        tracker.start()
        if config is not None:
            tracker.store_init_configuration(dict(config))
        return tracker


@dataclass
class Dashboard(ABC):
    """A mirror of `metrics.jsonl`: one thread sends it what it lacks, in the order of steps."""

    run: TrackedRun
    held: dict[int, set[str]] = field(default_factory=dict)
    """Names of the values that it already held when the run continued, by step."""

    def lacks(self, row: StepRow) -> StepRow | None:
        """Return the part of a row that it does not hold."""
        return row.without(self.held.get(row.step, ()))

    @abstractmethod
    def send(self, row: StepRow) -> None:
        """Show a row: its values, and for a validation the confusion matrix and images."""

    @abstractmethod
    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End the run there; waits until everything is stored or uploaded.

        Args:
            facts: summary of the run so far: `best/miou`, `best/step`, `time/hours`.
            best: folder of the best weights, if the dashboard keeps files and does not have them yet.
        """

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
    module, kind, _ = DASHBOARDS[name]
    dashboard: Dashboard = getattr(importlib.import_module(module), kind)(run)
    return dashboard
