"""An ablation of two variants on a tiny data set, and runs that are told instead of trained."""

from pathlib import Path

import numpy as np

from tests.synthetic import settings_of
from unetdist.apps.ablation.plan import Plan, Run, read_plan
from unetdist.apps.ablation.training import TIME_FILE
from unetdist.cli import settings
from unetdist.storage.files import write_json, write_text
from unetdist.train.run_folder import SETTINGS_FILE
from unetdist.train.run_status import RunStatus

VARIANTS = "variants:\n  plain:\n  group: {model.norm: group}\n"


def write_base(folder: Path, **sections) -> Path:
    """A config file whose data need not be there to plan with it."""
    values = settings_of(folder / "train", folder / "val", folder / "runs", **sections)
    write_text(folder / "base.yaml", settings.to_yaml(values))
    return folder / "base.yaml"


def plan_of(folder: Path, text: str = VARIANTS, *words: str) -> Plan:
    """What `text` plans beside a base."""
    write_text(folder / "tried.yaml", f"base: {write_base(folder)}\n{text}")
    return read_plan(folder / "tried.yaml", words)


def finish(
    run: Run, miou: float, *, seconds: float | None = None, confusions: np.ndarray | None = None
) -> None:
    """Leave behind what a finished run does."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / SETTINGS_FILE, settings.to_yaml(settings.to_mapping(run.config)))
    attempt = RunStatus(run.folder, is_main=True)
    attempt.begin(0)
    attempt.end("finished", 4)
    write_json(run.folder / "last" / "config.json", {"metric": {"name": "val/miou", "value": miou}})
    if seconds is not None:
        write_json(run.folder / TIME_FILE, {"training_s": seconds})
    if confusions is not None:
        np.savez(run.per_image_file, confusion=confusions)
