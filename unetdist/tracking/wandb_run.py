"""A run in wandb, through Accelerate's tracker."""

import math
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from accelerate import Accelerator
from accelerate.utils import LoggerType

from unetdist import pictures as draw
from unetdist.data.labels import Palette
from unetdist.ignore_index import IGNORE_INDEX
from unetdist.logs import logger
from unetdist.metrics import Scores
from unetdist.storage import write_text

ID_FILE = "wandb_id"

LARGEST_PX = 512
"""Pictures are shrunk to this width and height: each validation of a run adds them to its folder."""

Mode = Literal["auto", "online", "offline"]


@dataclass(frozen=True)
class Picture:
    """One scored image, for the eye: image (H, W, C) uint8, mask and pred (H, W) class indices."""

    key: str
    image: np.ndarray
    mask: np.ndarray
    pred: np.ndarray


class WandbRun:
    """A run in wandb through Accelerate's tracker; each restart continues the same run."""

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        project: str,
        mode: Mode,
        run_dir: Path,
        run_name: str,
        config: Mapping[str, Any],
    ) -> None:
        import wandb

        run_dir = run_dir.resolve()
        run_dir.mkdir(parents=True, exist_ok=True)
        # By default tables lie in the home folder, and a dead network holds the end of a run forever.
        os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb"))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
        self._accelerator = accelerator
        self._folder = run_dir / "wandb"
        options = {"name": run_name, "id": _run_id(run_dir), "resume": "allow", "dir": str(run_dir)}
        chosen = wandb_mode(mode)
        try:
            self._start(project, config, {**options, "mode": chosen})
        except Exception as error:
            if chosen == "offline":
                raise
            reason = str(error).splitlines()[0]
            logger.warning("wandb cannot be reached (%s); this run is logged offline", reason)
            wandb.teardown()  # else the id is still held by the run that could not start
            self._start(project, config, {**options, "mode": "offline"})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values of one step, but for those that are nan; steps must not fall."""
        self._send({name: value for name, value in values.items() if not math.isnan(value)}, step)

    def log_scores(
        self, scores: Scores, confusion: np.ndarray, pictures: Sequence[Picture], palette: Palette, step: int
    ) -> None:
        """Log what is not a number: tables, the confusion matrix, pictures."""
        import wandb

        names = list(scores.class_names)
        columns = [scores.iou, scores.dice, scores.precision, scores.recall, confusion.sum(1)]
        classes = [[name, *map(_none_if_nan, row)] for name, *row in zip(names, *columns, strict=True)]
        matrix = [[name, *map(int, row)] for name, row in zip(names, confusion, strict=True)]
        values: dict[str, Any] = {
            "val/classes": wandb.Table(
                ["class", "iou", "dice", "precision", "recall", "target_pixels"], classes
            ),
            "val/confusion": wandb.Image(draw.heat_map(confusion, names)),
            "val/confusion_table": wandb.Table(["target", *(f"predicted {name}" for name in names)], matrix),
        }
        if pictures:
            values |= self._pictures(pictures, palette)
        self._send(values, step)

    def _pictures(self, pictures: Sequence[Picture], palette: Palette) -> dict[str, Any]:
        """Images under switchable masks, in wandb's colours, and panels in the palette's colours."""
        import wandb

        names = palette.class_names
        labels = {**dict(enumerate(names)), IGNORE_INDEX: "ignored"}
        small = [draw.shrink(LARGEST_PX, p.image, p.mask, p.pred) for p in pictures]
        sheets = [draw.panels(image, mask, pred, palette.colors, names) for image, mask, pred in small]
        # wandb shows a list of pictures rightly only if all are of one size.
        images, masks, preds = zip(*small, strict=True)
        images = draw.pad_alike(images, 255)
        masks, preds = draw.pad_alike(masks, IGNORE_INDEX), draw.pad_alike(preds, IGNORE_INDEX)
        masked, panels = [], []
        for picture, image, mask, pred, sheet in zip(
            pictures, images, masks, preds, draw.pad_alike(sheets, 255), strict=True
        ):
            layers = {
                "target": {"mask_data": mask, "class_labels": labels},
                "prediction": {"mask_data": pred, "class_labels": labels},
            }
            masked.append(wandb.Image(image, caption=picture.key, masks=layers, file_type="jpg"))
            panels.append(wandb.Image(sheet, caption=picture.key, file_type="jpg"))
        return {"val/pictures": masked, "val/panels": panels}

    def close(self) -> None:
        """Finish the run; waits for uploads."""
        # Not accelerator.end_training(): that also takes down the process group.
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers = []

    def _send(self, values: dict[str, Any], step: int) -> None:
        self._accelerator.log(values, step=step)

    def _start(self, project: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        import wandb

        self._accelerator.trackers = []
        self._accelerator.log_with = [LoggerType.WANDB]
        settings = wandb.Settings(silent=options["mode"] == "offline")
        self._accelerator.init_trackers(
            project, dict(config), init_kwargs={"wandb": {**options, "settings": settings}}
        )
        if self._accelerator.get_tracker("wandb", unwrap=True).offline:
            logger.info(
                "wandb is offline. Look at the run: wandb leet %s   "
                "Upload it later: wandb login; wandb sync %s",
                self._folder,
                self._folder / "offline-run-*",
            )


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


def _run_id(run_dir: Path) -> str:
    """The same for every restart of a run."""
    path = run_dir / ID_FILE
    if not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


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
