"""A run in TensorBoard, through Accelerate's tracker."""

from collections.abc import Mapping
from pathlib import Path

from accelerate.utils import LoggerType

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.tracking.dashboard import Dashboard, Row, TrackedRun, sheets_of

FOLDER = "tensorboard"
"""In the run's folder."""


class TensorBoardRun(Dashboard):
    """A run in TensorBoard: one folder, to which each restart adds a file."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        folder = run.folder / FOLDER
        for file in sorted(folder.rglob("events.out.tfevents.*")):
            for step, names in _held(str(file)).items():
                self.held.setdefault(step, set()).update(names)
        self._tracker = run.open_tracker(LoggerType.TENSORBOARD, str(folder))
        self._writer = self._tracker.tracker
        if not self.held:
            # Not as "hparams": each restart would add a run of its own to TensorBoard's list.
            self._writer.add_text("settings", f"```\n{settings.to_yaml(run.config)}\n```", run.step)
        logger.info("TensorBoard: tensorboard --logdir %s", folder)

    def send(self, row: Row) -> None:
        """Show a row: numbers, and of a validation the confusion matrix and pictures."""
        if (shown := row.shown) is not None:
            heat_map = draw.heat_map(shown.confusion, shown.scores.class_names)
            self._writer.add_image("val/confusion", heat_map, row.step, dataformats="HWC")
            for number, sheet in enumerate(sheets_of(shown, self.run.palette)):
                self._writer.add_image(f"val/pictures/{number}", sheet, row.step, dataformats="HWC")
        self._tracker.log(dict(row.values), step=row.step)

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Close the file."""
        self._tracker.finish()


def _held(file: str) -> dict[int, set[str]]:
    """Names by step in a file of events; one that a crash cut short is read up to there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    held: dict[int, set[str]] = {}
    for event in EventFileLoader(file).Load():
        held.setdefault(event.step, set()).update(value.tag for value in event.summary.value)
    return held
