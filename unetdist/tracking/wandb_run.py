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
from unetdist.tracking.config import WandbMode, several
from unetdist.tracking.dashboard import CLOSE_S, PROJECT, Dashboard, StepRow, TrackedRun

# Names in the run's folder: the id of the run in wandb, and the last step that was handed to wandb.
ID_FILE = "wandb_id"
STEP_FILE = "wandb_step"

# Seconds that wandb's service may take to end.
SERVICE_END_S = 10.0


class WandbRun(Dashboard):
    """A run in wandb; each restart continues the run of the same id.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_NOTES and WANDB_MODE count where a setting is not
    given; WANDB_NAME is the name to show, WANDB_DIR the folder of wandb's files. A new run takes WANDB_RUN_ID, unless a
    run next to it has that id; a run that has an id keeps it. In a sweep, wandb chooses project, entity and id.
    """

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import wandb

        folder = run.folder.resolve()
        # wandb uploads the command line.
        sys.argv[1:] = map(credentials.mask, sys.argv[1:])
        # wandb's defaults keep tables in the home folder, and wait forever if the network fails at the end. It gets
        # a minute less than the end of a run waits for a dashboard, so that `close` can still end the service.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{CLOSE_S - 60:.0f}")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
        is_new = not (run.folder / ID_FILE).exists()
        self._given = wandb.setup().settings
        options = self._options()
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
            self._say_offline(Path(self._wandb.settings.wandb_dir))
        else:
            self.last_step = self._wandb.starting_step - 1
            if is_new and self.last_step > run.step:
                text = (
                    "wandb has run %s up to step %d already and gets only later steps; a new run needs no WANDB_RUN_ID"
                )
                logger.warning(text, self._wandb.id, self.last_step)
        self._wandb.define_metric("val/miou", summary="max")

    @property
    def project(self) -> str | None:
        """The project of the settings, of the environment, or the default one; that of a sweep is wandb's choice."""
        return None if self._given.sweep_id else self.run.cfg.project or self._given.project or PROJECT

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

    def _options(self) -> dict[str, Any]:
        """Return the arguments of `wandb.init`; for None, it reads its environment variables and settings files."""
        cfg, is_trial = self.run.cfg, bool(self._given.sweep_id)
        run_id = self._run_id(self._given.run_id)
        return {
            "name": self._given.run_name or self.run.name,
            "id": None if is_trial else run_id,  # wandb takes those of the sweep, and warns of others
            "entity": None if is_trial else cfg.entity,
            "group": cfg.group,
            "tags": cfg.tags and several(cfg.tags),
            "notes": cfg.notes,
            "resume": "allow",
            "dir": None if os.environ.get("WANDB_DIR") else str(self.run.folder.resolve()),
        }

    def _run_id(self, wanted: str | None) -> str:
        """Return the id of the run: the one it has already, or else the `wanted` one unless another run has it."""
        folder = self.run.folder
        known = folder / ID_FILE
        if wanted and known.exists() and (own := self.run.own_id(ID_FILE)) != wanted:
            text = "%s continues run %s of wandb and ignores WANDB_RUN_ID (%s); for a new run, choose another --name"
            logger.warning(text, folder, own, wanted)
        elif wanted and not known.exists():
            others = [file.parent for file in folder.parent.glob(f"*/{ID_FILE}") if file.read_text().strip() == wanted]
            if others:
                text = "WANDB_RUN_ID (%s) is the id of %s, so that wandb gives %s another one"
                logger.warning(text, wanted, others[0], folder)
            else:
                write_text(known, wanted + "\n")
        return self.run.own_id(ID_FILE)

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
