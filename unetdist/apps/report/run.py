"""A run as its folder records it: settings, curves, scores, status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.errors import ConfigError
from unetdist.model.saved_model import CONFIG_FILE, MODEL_FILE, read_config
from unetdist.storage.remote import is_url
from unetdist.tracking.metrics_file import METRICS_FILE, row_of
from unetdist.train.run_folder import SETTINGS_FILE
from unetdist.train.run_status import Status, read_status

Which = Literal["best", "last"]


@dataclass(frozen=True)
class ReportedRun:
    """The contents of a run's folder; a run that has just begun has neither rows nor weights."""

    folder: Path
    name: str
    """Name of the folder, with as many parent folders as distinguish it from the other runs."""
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, float | None]]
    """Lines of metrics.jsonl."""
    weights: Path | None
    """Folder of the reported weights."""
    model: Mapping[str, Any]
    """config.json of the weights; empty without weights."""
    status: Status | None

    def series(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of the metric `name`; nan where it had no value."""
        found = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)

    def latest(self, name: str) -> float | None:
        """The last value of the metric `name`, or None."""
        values = self.series(name)[1]
        return float(values[-1]) if values.size and not np.isnan(values[-1]) else None

    @property
    def labels(self) -> list[Mapping[str, Any]]:
        """Records of the trained classes, by index."""
        return [record for record in self.model.get("classes", ()) if record["index"] is not None]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index."""
        return tuple(record["name"] for record in self.labels)

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """Confusion matrix (C, C), rows target, that was counted when the weights were saved."""
        report = self.model.get("report")
        return None if report is None else np.array(report["confusion"], dtype=np.int64)

    @property
    def training_s(self) -> float | None:
        """Seconds spent in training steps, without validation; None if nothing was logged."""
        steps, step_s = self.series("time/step_s")
        return float(np.nansum(step_s * np.diff(steps, prepend=0.0))) if steps.size else None

    @property
    def validation_data(self) -> str | None:
        """The data.val of its settings; a relative path is taken from the folder where the run was started."""
        location: str | None = (self.settings.get("data") or {}).get("val")
        if location is None or is_url(location) or Path(location).exists():
            return location
        inner = Path(str(self.settings.get("runs_dir", "runs")), str(self.settings.get("name", "")))
        folder = self.folder.resolve()
        if not inner.is_absolute() and folder.parts[-len(inner.parts) :] == inner.parts:
            started_in = folder.parents[len(inner.parts) - 1]
            if (started_in / location).exists():
                return str(started_in / location)
        return location


def read_runs(folders: Sequence[Path], which: Which = "best") -> list[ReportedRun]:
    """Read the runs in `folders`, with the `which` weights of each, or the others if those are missing.

    Raises:
        ConfigError: a folder holds no run, one of its files is damaged, or the runs have different classes.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, there in zip(folders, resolved, strict=True):
        if resolved.count(there) > 1:
            raise ConfigError(f"{folder} is given twice; give each run once.")
    runs = [_read(folder, name, which) for folder, name in zip(folders, _names(resolved), strict=True)]
    with_classes = [run for run in runs if run.class_names]
    for run in with_classes[1:]:
        if run.class_names != with_classes[0].class_names:
            raise ConfigError(f"{run.folder} has other classes than {with_classes[0].folder}; write a report of each.")
    return runs


def _read(folder: Path, name: str, which: Which) -> ReportedRun:
    if not any((folder / file).is_file() for file in (METRICS_FILE, SETTINGS_FILE)):
        hint = folder.parent if (folder / MODEL_FILE).is_file() else "runs/NAME"
        raise ConfigError(
            f"{folder} holds no run ({METRICS_FILE} and {SETTINGS_FILE} are missing); give the folder of a run: {hint}."
        )
    others: tuple[Which, ...] = ("best", "last")
    weights = [folder / each for each in (which, *others) if (folder / each / CONFIG_FILE).is_file()]
    file = folder / SETTINGS_FILE
    return ReportedRun(
        folder=folder,
        name=name,
        settings=public(settings.read_yaml(file)) if file.is_file() else {},
        rows=_rows(folder / METRICS_FILE),
        weights=weights[0] if weights else None,
        model=read_config(weights[0]) if weights else {},
        status=read_status(folder),
    )


def _rows(file: Path) -> list[dict[str, float | None]]:
    """Read the lines of metrics.jsonl."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(row_of(line))
        except ValueError as error:
            # A crash may have cut the last line short, or it is being written.
            if number < len(lines):
                raise ConfigError(
                    f"{file}, line {number} holds no metrics of a step ({error}); remove that line."
                ) from None
    return rows


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that all differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
