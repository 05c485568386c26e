"""A run in wandb, through Accelerate's tracker."""

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from accelerate.utils import LoggerType

from unetdist.cli import credentials
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.data.labels import IGNORE_INDEX
from unetdist.evaluation.evaluate import Report
from unetdist.evaluation.examples import ScoredImage
from unetdist.evaluation.metrics import none_if_nan
from unetdist.storage.files import write_text
from unetdist.tracking.dashboard import Dashboard, StepRow, TrackedRun, WandbMode

ID_FILE = "wandb_id"
# Names in the run's folder: the id of the run in wandb, and the last step that was handed to wandb.
STEP_FILE = "wandb_step"


class WandbRun(Dashboard):
    """A run in wandb; each restart continues the run of the same id."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import wandb

        folder = run.folder.resolve()
        # wandb uploads the command line.
        sys.argv[1:] = map(credentials.mask, sys.argv[1:])
        # wandb's defaults keep tables in the home folder, and wait forever if the network fails at the end.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
        is_new = not (run.folder / ID_FILE).exists()
        options = {"name": run.name, "id": run.own_id(ID_FILE), "resume": "allow", "dir": str(folder)}
        mode = wandb_mode(run.mode)
        try:
            self._start({**options, "mode": mode})
        except Exception as error:
            if mode == "offline":
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("wandb cannot be reached (%s); this run is logged offline", reason)
            wandb.teardown()  # otherwise the run that could not start still holds the id
            self._start({**options, "mode": "offline"})
        if self._wandb.offline:
            self._last_step = -1 if is_new else self._last_sent()
            self._say_offline(folder / "wandb")
        else:
            self._last_step = self._wandb.starting_step - 1
        self._wandb.define_metric("val/miou", summary="max")

    def lacks(self, row: StepRow) -> StepRow | None:
        """Return the row if its step is above the last one; wandb ignores any other."""
        return row if row.step > self._last_step else None

    def send(self, row: StepRow) -> None:
        """Show a row, and for a validation tables, the confusion matrix and images."""
        self._tracker.log(dict(row.values), step=row.step, commit=row.report is None)
        if row.report is not None:
            # In a second call, because wandb names the files by the step, which it knows only now.
            self._tracker.log(self._shown(row.report), step=row.step, commit=True)
        self._last_step = row.step
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
        self._tracker.finish()

    def _start(self, options: Mapping[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(silent=options["mode"] == "offline")
        self._tracker = self.run.open_tracker(LoggerType.WANDB, config=self.run.config, settings=settings, **options)
        self._wandb = self._tracker.tracker

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
        if self._last_step >= 0:
            # wandb writes its files in blocks of 32 KiB, so a killed process leaves less than it logged.
            logger.info(
                "wandb continues after step %d. If the run was killed, wandb's files may lack some earlier rows; "
                "metrics.jsonl has all of them",
                self._last_step,
            )

    def _shown(self, report: Report) -> dict[str, Any]:
        """Return scores per class, the confusion matrix as a picture and as numbers, and the examples."""
        import wandb

        scores, confusion, images = report.scores, report.confusion, self.drawn(report)
        names = list(scores.class_names)
        columns = [scores.iou, scores.dice, scores.precision, scores.recall, confusion.sum(1)]
        classes = [[name, *map(none_if_nan, row)] for name, *row in zip(names, *columns, strict=True)]
        matrix = [[name, *map(int, row)] for name, row in zip(names, confusion, strict=True)]
        heat_map, _ = images.pop("val/confusion")
        shown: dict[str, Any] = {
            "val/classes": wandb.Table(["class", "iou", "dice", "precision", "recall", "target_pixels"], classes),
            "val/confusion": wandb.Image(heat_map),
            "val/confusion_table": wandb.Table(["target", *(f"predicted {name}" for name in names)], matrix),
        }
        if images:
            shown["val/pictures"] = self._masked(report.examples)
            shown["val/panels"] = [
                wandb.Image(panel, caption=caption, file_type="jpg") for panel, caption in images.values()
            ]
        return shown

    def _masked(self, examples: Sequence[ScoredImage]) -> list[Any]:
        """Return images under masks that can be switched on."""
        import wandb

        labels = {**dict(enumerate(self.run.palette.class_names)), IGNORE_INDEX: "ignored"}
        # wandb shows a list of images correctly only if all have one size.
        images = draw.pad_alike([each.image for each in examples], 255)
        masks = draw.pad_alike([each.mask for each in examples], IGNORE_INDEX)
        preds = draw.pad_alike([each.pred for each in examples], IGNORE_INDEX)
        masked = []
        for example, image, mask, pred in zip(examples, images, masks, preds, strict=True):
            layers = {
                "target": {"mask_data": mask, "class_labels": labels},
                "prediction": {"mask_data": pred, "class_labels": labels},
            }
            masked.append(wandb.Image(image, caption=example.caption, masks=layers, file_type="jpg"))
        return masked


def wandb_mode(mode: WandbMode) -> str:
    """Resolve `auto`. Without an account wandb would ask for one, or fail where nobody can answer."""
    if mode != "auto":
        return mode
    import wandb

    settings = wandb.setup().settings
    has_account = (
        settings.api_key or settings.identity_token_file or _has_login(settings.base_url, wandb.Settings().base_url)
    )
    return os.environ.get("WANDB_MODE") or (settings.mode if has_account else "offline")


def _has_login(server: str, default_server: str) -> bool:
    """Return whether `wandb login` stored a key for this server in the netrc file."""
    hosts = {urlsplit(server).netloc}
    if server == default_server:
        hosts.add("api.wandb.ai")  # the server's name in older logins, which wandb still accepts
    home = Path.home()
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]
    for path in files:
        try:
            known = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        return not hosts.isdisjoint(known)
    return False
