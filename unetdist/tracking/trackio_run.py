"""A run in trackio, through Accelerate's tracker; trackio says itself how to look at it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType

from unetdist.data import drawing as draw
from unetdist.tracking.dashboard import Dashboard, Row, TrackedRun, sheets_of

ID_FILE = "trackio_id"


class TrackioRun(Dashboard):
    """A run in trackio, whose runs are known by their names: each restart continues the one of that name."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        name = f"{run.name}-{run.own_id(ID_FILE)}"
        self._tracker = run.open_tracker(
            LoggerType.TRACKIO, name=name, resume="allow", embed=False, config=dict(run.config)
        )
        self._last_step = self._tracker.tracker._next_step - 1

    def lacks(self, row: Row) -> Row | None:
        """The row, unless it or a later one is there: trackio stores them whole and in order."""
        return row if row.step > self._last_step else None

    def send(self, row: Row) -> None:
        """Show a row: numbers, and of a validation the confusion matrix and pictures."""
        import trackio

        values: dict[str, Any] = dict(row.values)
        if (shown := row.shown) is not None:
            heat_map = draw.heat_map(shown.confusion, shown.scores.class_names)
            values["val/confusion"] = trackio.Image(heat_map)
            for number, sheet in enumerate(sheets_of(shown, self.run.palette)):
                caption = shown.pictures[number].caption
                values[f"val/pictures/{number}"] = trackio.Image(sheet, caption=caption)
        self._tracker.log(values, step=row.step)
        self._last_step = row.step

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Finish the run; waits until its rows are stored."""
        self._tracker.finish()
