"""A run in MLflow, through Accelerate's tracker."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType

from unetdist import pictures as draw
from unetdist import settings
from unetdist.logs import logger
from unetdist.storage import write_text
from unetdist.tracking.dashboard import Dashboard, Row, TrackedRun, sheets_of

ID_FILE = "mlflow_id"


class MlflowRun(Dashboard):
    """A run in MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` beside the runs' folders."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import mlflow

        options: dict[str, Any] = {"run_name": run.name}
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if store is None:
            beside = run.folder.resolve().parent
            store = f"sqlite:///{beside / 'mlflow.db'}"
            mlflow.set_tracking_uri(store)
            options["logging_dir"] = (beside / "mlflow_files").as_uri()
        id_file = run.folder / ID_FILE
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        # Settings of a run are written once in MLflow, and are the same in each restart but for how it is watched.
        config = None if known else settings.flat(run.config)
        self._tracker = run.open_tracker(LoggerType.MLFLOW, config=config, run_id=known, **options)
        self._id = self._tracker.tracker.info.run_id
        write_text(id_file, self._id + "\n")
        client = mlflow.MlflowClient()
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


def _allowed(name: str) -> str:
    """A name in the characters that MLflow has for metrics; classes may have others."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
