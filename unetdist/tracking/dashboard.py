"""What a dashboard is told, and what each kind of dashboard can do."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from unetdist.data import drawing as draw
from unetdist.data.labels import Palette
from unetdist.evaluation.examples import Picture
from unetdist.evaluation.metrics import Scores
from unetdist.storage.files import write_text

Mode = Literal["auto", "online", "offline"]


@dataclass(frozen=True)
class Shown:
    """What a validation shows beside its numbers."""

    scores: Scores
    confusion: np.ndarray
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Row:
    """All that is told of one step, at once: dashboards hold either all of it or nothing."""

    step: int
    values: Mapping[str, float]
    """Finite numbers by their name."""

    shown: Shown | None = None

    def without(self, names: Collection[str]) -> "Row | None":
        """The part that is not among `names`; None where nothing is left."""
        left = {name: value for name, value in self.values.items() if name not in names}
        return replace(self, values=left) if left else None


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that dashboards show."""

    project: str
    mode: Mode
    folder: Path
    name: str
    config: Mapping[str, Any]
    """Resolved settings, JSON types."""

    palette: Palette
    step: int
    """Steps done when the run began, or went on."""

    def own_id(self, file: str) -> str:
        """An id that each restart of the run finds again in its folder."""
        path = self.folder / file
        if not path.exists():
            write_text(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()

    def open_tracker(
        self, kind: LoggerType, *where: str, config: Mapping[str, Any] | None = None, **options: Any
    ) -> GeneralTracker:
        """Accelerate's tracker of a kind, begun: of this run alone, so that each dashboard fails for itself.

        Args:
            kind: which.
            where: folder, for those that need one.
            config: settings that it shows.
            options: for the dashboard's own `init`.
        """
        tracker: GeneralTracker = LOGGER_TYPE_TO_CLASS[kind.value](self.project, *where, **options)
        tracker.start()
        if config is not None:
            tracker.store_init_configuration(dict(config))
        return tracker


@dataclass
class Dashboard(ABC):
    """A mirror of `metrics.jsonl`: it is sent what it does not hold yet, from one thread, in the order of steps."""

    run: TrackedRun
    held: dict[int, set[str]] = field(default_factory=dict)
    """Names of the numbers that it held, by step, when the run went on."""

    def lacks(self, row: Row) -> Row | None:
        """The part of a row that it does not hold."""
        return row.without(self.held.get(row.step, ()))

    @abstractmethod
    def send(self, row: Row) -> None:
        """Show a row."""

    @abstractmethod
    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End; waits until everything is stored or uploaded.

        Args:
            facts: what the run came to so far: `best/miou`, `best/step`, `time/hours`.
            best: folder of the best weights, for those that keep files, unless they have it already.
        """


def sheets_of(shown: Shown, palette: Palette) -> list[np.ndarray]:
    """Each picture beside its ground truth and prediction, in class colours, under one size: (H, W, 3) uint8."""
    names = palette.class_names
    return draw.pad_alike(
        [draw.panels(each.image, each.mask, each.pred, palette.colors, names) for each in shown.pictures], 255
    )
