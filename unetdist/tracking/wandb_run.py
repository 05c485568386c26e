"""A run in wandb, through Accelerate's tracker."""

import json
import math
import netrc
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from accelerate.utils import LoggerType

from unetdist.cli import credentials
from unetdist.cli.logs import logger
from unetdist.data import drawing as draw
from unetdist.data.labels import IGNORE_INDEX
from unetdist.tracking.dashboard import Dashboard, Mode, Row, Shown, TrackedRun, sheets_of

ID_FILE = "wandb_id"


class WandbRun(Dashboard):
    """A run in wandb; each restart continues the same run."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import wandb

        folder = run.folder.resolve()
        # wandb keeps the words of the command.
        sys.argv[1:] = map(credentials.mask, sys.argv[1:])
        # By default tables lie in the home folder, and a dead network holds the end of a run forever.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # Then it is logged offline.
        run_id = run.own_id(ID_FILE)
        options = {"name": run.name, "id": run_id, "resume": "allow", "dir": str(folder)}
        chosen = wandb_mode(run.mode)
        # Before it is opened: wandb writes at most every few seconds, so who is killed leaves less than was logged.
        recorded = last_recorded_step(folder / "wandb", run_id)
        try:
            self._start({**options, "mode": chosen})
        except Exception as error:
            if chosen == "offline":
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("wandb cannot be reached (%s); this run is logged offline", reason)
            wandb.teardown()  # else the id is still held by the run that could not start
            self._start({**options, "mode": "offline"})
        if self._wandb.offline:
            logger.info(
                "wandb is offline. Look at the run: wandb leet %s   "
                "Upload it later: wandb login; wandb sync %s",
                folder / "wandb",
                folder / "wandb" / "offline-run-*",
            )
            self._last_step = run.step if recorded is None else recorded
        else:
            self._last_step = self._wandb.starting_step - 1
        self._wandb.define_metric("val/miou", summary="max")

    def lacks(self, row: Row) -> Row | None:
        """The row, unless it or a later one is there: steps must not fall."""
        return row if row.step > self._last_step else None

    def send(self, row: Row) -> None:
        """Show a row: numbers, and of a validation tables, the confusion matrix, pictures."""
        self._tracker.log(dict(row.values), step=row.step, commit=row.shown is None)
        if row.shown is not None:  # once the step is known, by which wandb names the files
            values = self._tables(row.shown)
            if row.shown.pictures:
                values |= self._pictures(row.shown)
            self._tracker.log(values, step=row.step, commit=True)
        self._last_step = row.step

    def close(self, facts: Mapping[str, float], best: Path | None) -> None:
        """Finish the run, with its best weights as an artifact, which says how good they are and of what classes."""
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
        self._tracker = self.run.open_tracker(
            LoggerType.WANDB, config=self.run.config, settings=settings, **options
        )
        self._wandb = self._tracker.tracker

    def _tables(self, shown: Shown) -> dict[str, Any]:
        """Scores per class, and the confusion matrix as a picture and as numbers."""
        import wandb

        scores, confusion = shown.scores, shown.confusion
        names = list(scores.class_names)
        columns = [scores.iou, scores.dice, scores.precision, scores.recall, confusion.sum(1)]
        classes = [[name, *map(_none_if_nan, row)] for name, *row in zip(names, *columns, strict=True)]
        matrix = [[name, *map(int, row)] for name, row in zip(names, confusion, strict=True)]
        return {
            "val/classes": wandb.Table(
                ["class", "iou", "dice", "precision", "recall", "target_pixels"], classes
            ),
            "val/confusion": wandb.Image(draw.heat_map(confusion, names)),
            "val/confusion_table": wandb.Table(["target", *(f"predicted {name}" for name in names)], matrix),
        }

    def _pictures(self, shown: Shown) -> dict[str, Any]:
        """Images under switchable masks, in wandb's colours, and panels in the palette's colours."""
        import wandb

        pictures = shown.pictures
        labels = {**dict(enumerate(self.run.palette.class_names)), IGNORE_INDEX: "ignored"}
        # wandb shows a list of pictures rightly only if all are of one size.
        images = draw.pad_alike([each.image for each in pictures], 255)
        masks = draw.pad_alike([each.mask for each in pictures], IGNORE_INDEX)
        preds = draw.pad_alike([each.pred for each in pictures], IGNORE_INDEX)
        masked, panels = [], []
        for picture, image, mask, pred, sheet in zip(
            pictures, images, masks, preds, sheets_of(shown, self.run.palette), strict=True
        ):
            layers = {
                "target": {"mask_data": mask, "class_labels": labels},
                "prediction": {"mask_data": pred, "class_labels": labels},
            }
            masked.append(wandb.Image(image, caption=picture.caption, masks=layers, file_type="jpg"))
            panels.append(wandb.Image(sheet, caption=picture.caption, file_type="jpg"))
        return {"val/pictures": masked, "val/panels": panels}


def last_recorded_step(folder: Path, run_id: str) -> int | None:
    """The last step in the files that wandb keeps of a run, -1: none; None where they cannot be read."""
    files = sorted(
        folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"), key=lambda file: file.parent.name[-24:]
    )
    for file in reversed(files):  # a restart records only what the files before it lack
        read = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(file)]
        # In a session of its own, where a Ctrl-C that asks the run to stop does not reach it.
        done = subprocess.run(read, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode != 0:
            logger.warning(
                "%s cannot be read (%s); what wandb lacks of this run from before stays away from it",
                file,
                done.stderr.strip().splitlines()[-1:] or "no reason is told",
            )
            return None
        rows = [json.loads(line) for line in done.stdout.splitlines() if '"history"' in line]
        steps = [int(row["history"]["item"]["_step"]) for row in rows if row["type"] == "history"]
        if steps:
            return max(steps)
    return -1


def wandb_mode(mode: Mode) -> str:
    """What `auto` means here; without an account wandb would ask for one, or fail where nobody can answer."""
    if mode != "auto":
        return mode
    import wandb

    settings = wandb.setup().settings
    has_account = (
        settings.api_key
        or settings.identity_token_file
        or _has_login(settings.base_url, wandb.Settings().base_url)
    )
    return os.environ.get("WANDB_MODE") or (settings.mode if has_account else "offline")


def _has_login(server: str, default_server: str) -> bool:
    """Whether `wandb login` has left a key for this server in the netrc file."""
    hosts = {urlsplit(server).netloc}
    if server == default_server:
        hosts.add("api.wandb.ai")  # the public server's name in older logins; wandb accepts them still
    home = Path.home()
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else [home / ".netrc", home / "_netrc"]
    for path in files:
        try:
            known = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        return not hosts.isdisjoint(known)
    return False


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
