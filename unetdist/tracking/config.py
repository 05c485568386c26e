"""Which dashboards there are, and which of them a run has."""

import importlib
import importlib.util
from dataclasses import dataclass

from unetdist.errors import ConfigError
from unetdist.tracking.dashboard import Dashboard, Mode, TrackedRun

DASHBOARDS = {
    "wandb": ("unetdist.tracking.wandb_run", "WandbRun", "wandb"),
    "trackio": ("unetdist.tracking.trackio_run", "TrackioRun", "-e '.[trackio]'"),
    "tensorboard": ("unetdist.tracking.tensorboard_run", "TensorBoardRun", "-e '.[tensorboard]'"),
    "mlflow": ("unetdist.tracking.mlflow_run", "MlflowRun", "-e '.[mlflow]'"),
}
"""By the name of the setting, which is also the package's: module and class here, and what pip installs."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run can be watched, beside the terminal and `metrics.jsonl`."""

    tracker: str | list[str] = "wandb"
    """Dashboard: wandb, trackio, tensorboard, mlflow or none; or several, with commas: wandb,tensorboard."""

    project: str = "unetdist"
    """The dashboard's project, which groups runs."""

    mode: Mode = "auto"
    """Of wandb. `auto`: online with an account, else offline; the environment variable WANDB_MODE is obeyed."""

    num_pictures: int = 8
    """Validation pictures with their masks that go to the dashboard at each validation: the first ones, and as many
    of the worst; 0: none."""

    def __post_init__(self) -> None:
        names = self.dashboards
        unknown = [name for name in names if name not in DASHBOARDS]
        if unknown or (not names and self._names != ("none",)):
            raise ConfigError(
                f"tracking.tracker ({', '.join(self._names)}) must be one or several of {', '.join(DASHBOARDS)}, "
                "or none; use wandb."
            )
        if self.num_pictures < 0:
            raise ConfigError(
                f"tracking.num_pictures ({self.num_pictures}) must be at least 0; use 0 for no pictures."
            )
        if not self.project:
            raise ConfigError("tracking.project ('') must be a name; use unetdist.")

    @property
    def _names(self) -> tuple[str, ...]:
        names = self.tracker.split(",") if isinstance(self.tracker, str) else self.tracker
        return tuple(dict.fromkeys(name.strip() for name in names))

    @property
    def dashboards(self) -> tuple[str, ...]:
        """Their names, each once."""
        return () if self._names == ("none",) else self._names


def check_installed(cfg: TrackingConfig) -> None:
    """Refuse a dashboard whose package is not there.

    Raises:
        ConfigError: it names the package, and how to have it.
    """
    for name in cfg.dashboards:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.tracker ({name}) must be installed; run pip install {DASHBOARDS[name][2]}, "
                "or use --tracking.tracker none."
            )


def open_dashboard(name: str, run: TrackedRun) -> Dashboard:
    """Begin a run in the dashboard of that name, or go on with it; its package is imported only now."""
    module, kind, _ = DASHBOARDS[name]
    dashboard: Dashboard = getattr(importlib.import_module(module), kind)(run)
    return dashboard
