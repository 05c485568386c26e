"""The settings of the dashboards, and the names of those there are."""

from dataclasses import dataclass
from typing import Literal

from unetdist.errors import ConfigError

WandbMode = Literal["auto", "online", "offline"]

# Module and class by the name of the setting, which is also the name of the package and of its extra (wandb has none).
DASHBOARDS = {
    "wandb": ("unetdist.tracking.wandb_run", "WandbRun"),
    "trackio": ("unetdist.tracking.local_dashboards", "TrackioRun"),
    "tensorboard": ("unetdist.tracking.local_dashboards", "TensorBoardRun"),
    "mlflow": ("unetdist.tracking.local_dashboards", "MlflowRun"),
}


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where a run can be watched, in addition to the terminal and `metrics.jsonl`."""

    tracker: str | list[str] = "wandb"
    """Dashboard: wandb, trackio, tensorboard, mlflow or none; several with commas: wandb,tensorboard."""

    project: str | None = None
    """The dashboard's project, which groups runs. Default: WANDB_PROJECT for wandb, or else unetdist."""

    entity: str | None = None
    """User or team of wandb that owns the run. Default: WANDB_ENTITY, or else that of the account."""

    group: str | None = None
    """Group of runs within wandb's project, such as the folds of a cross-validation. Default: WANDB_RUN_GROUP."""

    tags: str | list[str] | None = None
    """Tags of the run in wandb, several with commas: baseline,paper. Default: WANDB_TAGS."""

    notes: str | None = None
    """A longer description of the run in wandb. Default: WANDB_NOTES."""

    mode: WandbMode = "auto"
    """Mode of wandb. `auto`: online with an account, otherwise offline; the environment variable WANDB_MODE wins."""

    num_pictures: int = 8
    """Validation pictures to show at each validation, half of them the first ones and half the worst; 0 for none."""

    def __post_init__(self) -> None:
        names = self.dashboards
        if not DASHBOARDS.keys() >= set(names) or self.tracker == []:
            raise ConfigError(
                f"tracking.tracker ({', '.join(names)}) must be one or several of {', '.join(DASHBOARDS)}, "
                "or none; use wandb."
            )
        if self.num_pictures < 0:
            raise ConfigError(f"tracking.num_pictures ({self.num_pictures}) must be at least 0; use 0 for no pictures.")
        if self.project == "":
            raise ConfigError("tracking.project ('') must be a name; use unetdist.")

    @property
    def dashboards(self) -> tuple[str, ...]:
        """Names of the dashboards, without repeats."""
        names = several(self.tracker)
        return () if names == ("none",) else names


def several(given: str | list[str]) -> tuple[str, ...]:
    """Return the words of a list, or of a text with commas, without repeats."""
    words = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(word.strip() for word in words))
