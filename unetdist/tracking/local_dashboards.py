"""Runs in TensorBoard, trackio and MLflow, through Accelerate's trackers; all three keep files on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.errors import DataError
from unetdist.storage.files import TEMPORARY_SUFFIX, hold_lock, write_atomic, write_text
from unetdist.tracking.dashboard import Dashboard, StepRow, TrackedRun

TENSORBOARD_FOLDER = "tensorboard"
TRACKIO_ID_FILE = "trackio_id"
# Names in the run's folder.
MLFLOW_ID_FILE = "mlflow_id"

# Name of MLflow's store, next to the runs' folders.
MLFLOW_STORE = "mlflow.db"

# Seconds to wait while another run creates the store.
STORE_WAIT_S = 300.0


class TensorBoardRun(Dashboard):
    """A run in TensorBoard: one folder, to which each restart adds a file."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        folder = run.folder / TENSORBOARD_FOLDER
        for file in sorted(folder.rglob("events.out.tfevents.*")):
            # The loader stops without an error where a crash cut the file.
            for event in EventFileLoader(str(file)).Load():
                self.held.setdefault(event.step, set()).update(value.tag for value in event.summary.value)
        self._tracker = run.open_tracker(LoggerType.TENSORBOARD, str(folder))
        self._writer = self._tracker.tracker
        if not self.held:
            # Settings are a text, because each restart would add a run to TensorBoard's list with "hparams".
            self._writer.add_text("settings", f"```\n{settings.to_yaml(run.config)}\n```", run.step)
        logger.info("TensorBoard: tensorboard --logdir %s", folder)

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        for name, (image, _) in self.drawn(row.report).items():
            self._writer.add_image(name, image, row.step, dataformats="HWC")
        self._tracker.log(dict(row.values), step=row.step)

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Close the file."""
        self._tracker.finish()


class TrackioRun(Dashboard):
    """A run in trackio. Trackio knows runs by name, so each restart continues the run of that name."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        name = f"{run.name}-{run.own_id(TRACKIO_ID_FILE)}"
        self._tracker = run.open_tracker(
            LoggerType.TRACKIO, name=name, resume="allow", embed=False, config=dict(run.config)
        )
        self._last_step = self._tracker.tracker._next_step - 1

    def lacks(self, row: StepRow) -> StepRow | None:
        """Return the row if its step is above the last one; trackio stores whole rows in the order of steps."""
        return row if row.step > self._last_step else None

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        import trackio

        images = self.drawn(row.report).items()
        shown = {name: trackio.Image(image, caption=caption or None) for name, (image, caption) in images}
        self._tracker.log({**row.values, **shown}, step=row.step)
        self._last_step = row.step

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Finish the run; waits until its rows are stored."""
        self._tracker.finish()


class MlflowRun(Dashboard):
    """A run in MLflow: at MLFLOW_TRACKING_URI, or in `mlflow.db` next to the runs' folders."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import mlflow

        options = {"run_name": run.name}
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if store is None:
            runs = run.folder.resolve().parent
            store = _store_at(runs / MLFLOW_STORE)
            mlflow.set_tracking_uri(store)
            options["logging_dir"] = (runs / "mlflow_files").as_uri()
        client = mlflow.MlflowClient()
        id_file = run.folder / MLFLOW_ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        if known is not None and not _has_run(client, known):  # its store was moved away
            known = None
        # MLflow refuses to change settings, and those of how the run is watched may differ after a restart.
        config = None if known else settings.flat(run.config)
        self._tracker = run.open_tracker(LoggerType.MLFLOW, config=config, run_id=known, **options)
        self._id = self._tracker.tracker.info.run_id
        write_text(id_file, self._id + "\n")
        for name in client.get_run(self._id).data.metrics if known else ():
            for metric in client.get_metric_history(self._id, name):
                self.held.setdefault(metric.step, set()).add(name)
        logger.info("MLflow: mlflow ui --backend-store-uri %s", store)

    def lacks(self, row: StepRow) -> StepRow | None:
        """Return the part of a row that is not in MLflow under its allowed name."""
        held = self.held.get(row.step, ())
        return row.without({name for name in row.values if _allowed(name) in held})

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        import mlflow

        for name, (image, _) in self.drawn(row.report).items():
            mlflow.log_image(image, key=name.replace("/", "-"), step=row.step)
        self._tracker.log({_allowed(name): value for name, value in row.values.items()}, step=row.step)

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End the run, with its best weights among its files."""
        import mlflow

        # Tags, because a metric would gain a point with each restart.
        mlflow.set_tags({name: f"{value:.6g}" for name, value in facts.items()})
        if best is not None:
            self._tracker.log_artifacts(str(best), artifact_path="best")
        self._tracker.finish()


def _store_at(file: Path) -> str:
    """Return the address of MLflow's store in `file`, which is created if absent.

    Raises:
        DataError: the store is incomplete, damaged or of another version.
    """
    from mlflow import MlflowClient

    # MLflow creates its tables in about a hundred steps that take seconds. If it is killed between two of them, nobody
    # can complete the store: "duplicate column name". So the store is created aside and renamed.
    lock = file.with_name(f".{file.name}.lock")
    lock.touch()
    with hold_lock(lock, wait_s=STORE_WAIT_S):
        for incomplete in file.parent.glob(f".{file.name}.*{TEMPORARY_SUFFIX}"):
            incomplete.unlink()
        if not file.exists():
            with write_atomic(file) as made:
                MlflowClient(f"sqlite:///{made.name}").search_experiments()
    store = f"sqlite:///{file}"
    try:
        MlflowClient(store).search_experiments()
    except Exception as error:
        raise DataError(
            f"cannot be opened ({type(error).__name__}: {' '.join(str(error).split())[:300]}). If a run was killed "
            "while it created this file, move the file away: the same command makes a new one and sends everything in "
            "metrics.jsonl again.",
            source=file,
        ) from None
    return store


def _has_run(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _allowed(name: str) -> str:
    """Replace the characters that MLflow does not allow in names; class names may have them."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
