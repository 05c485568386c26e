"""Cases to examine: a tiny data set, settings of a tiny run, and what the doctor says of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.synthetic import PALETTE_RECORDS, settings_of, write_shards
from unetdist.apps.doctor.board import Board
from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.command import examine
from unetdist.apps.doctor.examination import Check, Examination
from unetdist.apps.doctor.findings import Finding
from unetdist.apps.doctor.report import Screen
from unetdist.cli import settings
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import World
from unetdist.train.config import Config

BUDGET_S = 0.05


def write_data(folder: Path) -> None:
    write_shards(folder / "train", 12)
    write_shards(folder / "val", 4, size=(30, 20))


def forget_last_class(folder: Path) -> None:
    """The manifest knows two classes, the masks hold three."""
    manifest = Manifest.load(folder)
    replace(
        manifest,
        palette_records=tuple(record for record in PALETTE_RECORDS if record["index"] != 2),
        class_pixels=manifest.class_pixels[:2],
        class_images=manifest.class_images[:2],
        presence_pixels=manifest.presence_pixels[:2],
    ).save(folder)


def config_of(folder: Path, **sections: Any) -> Config:
    values = settings_of(folder / "train", folder / "val", folder / "runs", **sections)
    return settings.from_mapping(Config, values)


def case_of(folder: Path, **sections: Any) -> Case:
    """One process's case, with little time."""
    config, world = config_of(folder, **sections), World()
    return Case(
        config=config, world=world, board=Board(None, world), scratch=folder / "scratch", budget_s=BUDGET_S
    )


def findings_of(case: Case, *checks: Check) -> list[Finding]:
    examination = Examination(case)
    examination.make(checks)
    return examination.findings


def told(folder: Path, config: Config | None, **options: Any) -> tuple[int, dict[str, Any], str]:
    """Examine: the exit code, what is in the JSON file, what is on the screen."""
    file, lines = folder / "found.json", StringIO()
    screen = Screen(Console(file=lines, soft_wrap=True))
    code = examine(config, json_file=file, screen=screen, budget_s=BUDGET_S, **options)
    return code, json.loads(file.read_text()), lines.getvalue()


def only(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def level_of(judge: Callable[..., Any], *args: Any) -> list[str]:
    return [finding.level for finding in judge(*args)]
