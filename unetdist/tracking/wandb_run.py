"""A run in wandb, through Accelerate's tracker."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from accelerate.utils import LoggerType

from unetdist.cli import credentials
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.data.labels import IGNORE_INDEX
from unetdist.evaluation.evaluate import Report
from unetdist.storage.files import write_text
from unetdist.tracking.dashboard import CLOSE_S, Dashboard, StepRow, TrackedRun, WandbMode

# Names in the run's folder: the id of the run in wandb, and the last step that was handed to wandb.
ID_FILE = "wandb_id"
STEP_FILE = "wandb_step"

# Seconds that wandb's service may take to end.
SERVICE_END_S = 10.0


class WandbRun(Dashboard):
    """A run in wandb; each restart continues the run of the same id."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)

        folder = run.folder.resolve()
        # wandb uploads the command line.
        sys.argv[1:] = map(credentials.mask, sys.argv[1:])
        # wandb's defaults keep tables in the home folder, and wait forever if the network fails at the end. It gets
        # a minute less than the end of a run waits for a dashboard, so that `close` can still end the service.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{CLOSE_S - 60:.0f}")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
        is_new = not (run.folder / ID_FILE).exists()
        options = {"name": run.name, "id": run.own_id(ID_FILE), "resume": "allow", "dir": str(folder)}
        mode: str = run.cfg.mode
        try:
            mode = wandb_mode(run.cfg.mode)
            self._start({**options, "mode": mode})
        except Exception as error:
            if mode == "offline":
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("wandb cannot be reached (%s); this run is logged offline", reason)
            end_service()  # otherwise the run that could not start still holds the id
            self._start({**options, "mode": "offline"})
        if self._wandb.offline:
            self.last_step = -1 if is_new else self._last_sent()
            self._say_offline(folder / "wandb")
        else:
            self.last_step = self._wandb.starting_step - 1
        self._wandb.define_metric("val/miou", summary="max")

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation the confusion matrix and images."""
        self.tracker.log(dict(row.values), step=row.step, commit=row.report is None)
        if row.report is not None:
            # In a second call, because wandb names the files by the step, which it knows only now.
            self.tracker.log(self._shown(row.report), step=row.step, commit=True)
        write_text(self.run.folder / STEP_FILE, f"{row.step}\n")

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Finish the run, with its best weights as an artifact that names their score and classes."""
        import wandb

        self._wandb.summary.update(dict(facts))
        if best is not None:
            metadata = {**facts, "run": self.run.name, "classes": list(self.run.palette.class_names)}
            artifact = wandb.Artifact(f"{self._wandb.id}-best", type="model", metadata=metadata)
            for file in sorted(best.iterdir()):
                artifact.add_file(str(file))
            self._wandb.log_artifact(artifact, aliases=["best"])
        self.tracker.finish()
        end_service()

    def _start(self, options: Mapping[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(silent=options["mode"] == "offline")
        self._wandb = self.start(LoggerType.WANDB, config=self.run.config, settings=settings, **options)

    def _last_sent(self) -> int:
        """Return the last step that earlier processes handed to wandb."""
        try:
            return int((self.run.folder / STEP_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self.run.step

    def _say_offline(self, folder: Path) -> None:
        logger.info(
            "wandb is offline. Look at the run: wandb leet %s   Upload it later: wandb login; wandb sync %s",
            folder,
            folder / "offline-run-*",
        )
        if self.last_step >= 0:
            # wandb writes its files in blocks of 32 KiB, so a killed process leaves less than it logged.
            logger.info(
                "wandb continues after step %d. If the run was killed, wandb's files may lack some earlier rows; "
                "metrics.jsonl has all of them",
                self.last_step,
            )

    def _shown(self, report: Report) -> dict[str, Any]:
        """Return the confusion matrix as a picture, and the examples under masks that can be switched on."""
        import wandb

        names, examples = self.run.palette.class_names, report.examples
        shown: dict[str, Any] = {"val/confusion": wandb.Image(draw.heat_map(report.confusion, names))}
        if not examples:
            return shown
        labels = {**dict(enumerate(names)), IGNORE_INDEX: "ignored"}
        # wandb shows a list of images correctly only if all have one size.
        images = draw.pad_alike([each.image for each in examples], 255)
        masks = draw.pad_alike([each.mask for each in examples], IGNORE_INDEX)
        preds = draw.pad_alike([each.pred for each in examples], IGNORE_INDEX)
        shown["val/pictures"] = []
        for example, image, mask, pred in zip(examples, images, masks, preds, strict=True):
            layers = {
                "target": {"mask_data": mask, "class_labels": labels},
                "prediction": {"mask_data": pred, "class_labels": labels},
            }
            picture = wandb.Image(image, caption=example.caption, masks=layers, file_type="jpg")
            shown["val/pictures"].append(picture)
        return shown


def end_service() -> None:
    """End wandb's service process; wandb starts a new one when it needs it."""
    import wandb

    # While a request to the server is open, the service can miss the message to end, and wandb waits for it forever,
    # also when this process exits. A service that is left running ends with this process.
    thread = Thread(target=wandb.teardown, name="wandb-teardown", daemon=True)
    thread.start()
    thread.join(SERVICE_END_S)


def wandb_mode(mode: WandbMode) -> str:
    """Resolve `auto`: the mode that the user's settings of wandb name, or else online with an account."""
    if mode != "auto":
        return mode
    import wandb

    chosen = wandb.setup().settings.mode
    if os.environ.get("WANDB_MODE") or chosen != "online":
        return str(chosen)
    # Without an account `wandb.init` would ask for one, or fail where nobody can answer.
    return "online" if wandb.login(prompt=False, verify=False) else "offline"
