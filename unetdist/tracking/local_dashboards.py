"""Runs in TensorBoard, trackio and MLflow, through Accelerate's trackers; all three keep files on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path

from accelerate.utils import LoggerType

from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.storage.files import write_text
from unetdist.tracking.dashboard import Dashboard, StepRow, TrackedRun

# Names in the run's folder.
TENSORBOARD_FOLDER = "tensorboard"
TRACKIO_ID_FILE = "trackio_id"
MLFLOW_ID_FILE = "mlflow_id"

# Names of MLflow's store and of the folder of its files, next to the runs' folders.
MLFLOW_STORE = "mlflow.db"
MLFLOW_FILES = "mlflow_files"


class TensorBoardRun(Dashboard):
    """A run in TensorBoard: one folder, to which each restart adds a file."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        folder = run.folder / TENSORBOARD_FOLDER
        # The loader stops without an error where a crash cut the file.
        for file in folder.rglob("events.out.tfevents.*"):
            self.last_step = max([self.last_step, *(event.step for event in EventFileLoader(str(file)).Load())])
        self._writer = self.start(LoggerType.TENSORBOARD, str(folder))
        if self.last_step < 0:
            # Settings are a text, because each restart would add a run to TensorBoard's list with "hparams".
            self._writer.add_text("settings", f"```\n{settings.to_yaml(run.config)}\n```", 0)
        logger.info("TensorBoard: tensorboard --logdir %s", folder)

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        # Numbers first: a step that has only images, because the process was killed, would never get its numbers.
        self.tracker.log(dict(row.values), step=row.step)
        for name, (image, _) in self.drawn(row.report).items():
            self._writer.add_image(name, image, row.step, dataformats="HWC")
        self._writer.flush()


class TrackioRun(Dashboard):
    """A run in trackio. Trackio knows runs by name, so each restart continues the run of that name."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        name = f"{run.name}-{run.own_id(TRACKIO_ID_FILE)}"
        known = self.start(LoggerType.TRACKIO, name=name, resume="allow", embed=False, config=dict(run.config))
        self.last_step = known._next_step - 1

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        import trackio

        images = self.drawn(row.report).items()
        shown = {name: trackio.Image(image, caption=caption or None) for name, (image, caption) in images}
        self.tracker.log({**row.values, **shown}, step=row.step)


class MlflowRun(Dashboard):
    """A run in MLflow: in the store that MLFLOW_TRACKING_URI names, or in `mlflow.db` next to the runs' folders."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import mlflow
        from mlflow.exceptions import MlflowException

        where = []
        # MLflow's own store is in the current folder, and a restart from another one would not find the run.
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            runs = run.folder.resolve().parent
            mlflow.set_tracking_uri(f"sqlite:///{runs / MLFLOW_STORE}")
            where = [(runs / MLFLOW_FILES).as_uri()]
        store = mask(mlflow.get_tracking_uri())
        client = mlflow.MlflowClient()
        id_file = run.folder / MLFLOW_ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        try:
            if known is not None:
                for name in client.get_run(known).data.metrics:
                    steps = [metric.step for metric in client.get_metric_history(known, name)]
                    self.last_step = max([self.last_step, *steps])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow: run %s of %s is not in %s; a new run begins there", known, id_file, store)
            known = None
        # MLflow refuses to change settings, and those of how the run is watched may differ after a restart.
        config = None if known else settings.flat(run.config)
        active = self.start(LoggerType.MLFLOW, *where, config=config, run_id=known, run_name=run.name)
        write_text(id_file, active.info.run_id + "\n")
        logger.info("MLflow: mlflow ui --backend-store-uri %s", store)

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        import mlflow

        for name, (image, _) in self.drawn(row.report).items():
            mlflow.log_image(image, key=name.replace("/", "-"), step=row.step)
        self.tracker.log({_allowed(name): value for name, value in row.values.items()}, step=row.step)

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End the run, with its best weights among its files."""
        import mlflow

        # Tags, because a metric would gain a point with each restart.
        mlflow.set_tags({name: f"{value:.6g}" for name, value in facts.items()})
        if best is not None:
            self.tracker.log_artifacts(str(best), artifact_path="best")
        self.tracker.finish()


def _allowed(name: str) -> str:
    """Replace the characters that MLflow does not allow in names; class names may have them."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
