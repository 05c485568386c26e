"""A run in MLflow, through Accelerate's tracker."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.errors import DataError
from unetdist.storage.files import TEMPORARY_SUFFIX, write_atomic, write_text
from unetdist.storage.locks import hold
from unetdist.tracking.dashboard import Dashboard, Row, TrackedRun, sheets_of

ID_FILE = "mlflow_id"
STORE_FILE = "mlflow.db"

LONGEST_MAKING_S = 300.0
"""How long a run waits for another that makes the store of both."""


class MlflowRun(Dashboard):
    """A run in MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` beside the runs' folders."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import mlflow

        options: dict[str, Any] = {"run_name": run.name}
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if store is None:
            beside = run.folder.resolve().parent
            store = _store_at(beside / STORE_FILE)
            mlflow.set_tracking_uri(store)
            options["logging_dir"] = (beside / "mlflow_files").as_uri()
        client = mlflow.MlflowClient()
        id_file = run.folder / ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        if known is not None and not _has_run(client, known):  # its store was moved away: begin a new run
            known = None
        # Settings of a run are written once in MLflow, and are the same in each restart but for how it is watched.
        config = None if known else settings.flat(run.config)
        self._tracker = run.open_tracker(LoggerType.MLFLOW, config=config, run_id=known, **options)
        self._id = self._tracker.tracker.info.run_id
        write_text(id_file, self._id + "\n")
        for name in client.get_run(self._id).data.metrics if known else ():
            for metric in client.get_metric_history(self._id, name):
                self.held.setdefault(metric.step, set()).add(name)
        logger.info("MLflow: mlflow ui --backend-store-uri %s", store)

    def send(self, row: Row) -> None:
        """Show a row: numbers, and of a validation the confusion matrix and pictures."""
        import mlflow

        if (shown := row.shown) is not None:
            heat_map = draw.heat_map(shown.confusion, shown.scores.class_names)
            mlflow.log_image(heat_map, key="val-confusion", step=row.step)
            for number, sheet in enumerate(sheets_of(shown, self.run.palette)):
                mlflow.log_image(sheet, key=f"val-pictures-{number}", step=row.step)
        self._tracker.log({_allowed(name): value for name, value in row.values.items()}, step=row.step)

    def lacks(self, row: Row) -> Row | None:
        """The part of a row that is not there: MLflow knows it under names that it allows."""
        held = self.held.get(row.step, ())
        return row.without({name for name in row.values if _allowed(name) in held})

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """End the run, with its best weights among its files."""
        import mlflow

        # As tags: a metric would gain a point with each restart.
        mlflow.set_tags({name: f"{value:.6g}" for name, value in facts.items()})
        if best is not None:
            self._tracker.log_artifacts(str(best), artifact_path="best")
        self._tracker.finish()


def _store_at(file: Path) -> str:
    """The address of MLflow's store in `file`, which is made if need be, and appears there whole.

    MLflow makes its tables in some hundred steps that take seconds. Killed between two of them it would leave a store
    that neither it nor anybody else can finish: "duplicate column name".

    Raises:
        DataError: the store is half-made, damaged or of another version.
    """
    from mlflow import MlflowClient

    lock = file.with_name(f".{file.name}.lock")
    lock.touch()
    with hold(lock, wait_s=LONGEST_MAKING_S):
        for half_made in file.parent.glob(f".{file.name}.*{TEMPORARY_SUFFIX}"):
            half_made.unlink()
        if not file.exists():
            with write_atomic(file) as made:
                MlflowClient(f"sqlite:///{made.name}").search_experiments()
    store = f"sqlite:///{file}"
    try:
        MlflowClient(store).search_experiments()
    except Exception as error:
        raise DataError(
            f"cannot be opened ({type(error).__name__}: {' '.join(str(error).split())[:300]}). If a run was killed "
            "while it made this file, move it away: the same command makes a new one, and sends all that metrics.jsonl "
            "holds.",
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
    """A name in the characters that MLflow has for metrics; classes may have others."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
