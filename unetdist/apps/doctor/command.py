"""All checks, in their order, on all processes of a launch."""

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from unetdist.apps.doctor import (
    dashboards,
    data,
    folders,
    forecast,
    machine,
    network,
    pace,
    scoring,
    software,
    training,
)
from unetdist.apps.doctor.board import Board
from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import Examination, describe, overheard
from unetdist.apps.doctor.findings import Finding, problem, warning
from unetdist.apps.doctor.report import Screen, to_mapping
from unetdist.cli.logs import logger, set_up_logging, tell_launcher
from unetdist.distributed.collectives import World, make_accelerator, world_of
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import ConfigError, UnetdistError
from unetdist.storage.files import write_json
from unetdist.train.config import Config

CHECKS = (
    *software.CHECKS,
    *dashboards.CHECKS,
    *machine.CHECKS,
    *network.CHECKS,
    *data.CHECKS,
    *training.CHECKS,
    *pace.CHECKS,
    *scoring.CHECKS,
    *folders.CHECKS,
    *forecast.CHECKS,
)
TIMEOUT_S = 120
"""Of a collective that some process does not come to, because it failed."""
OTHERS_S = 120.0
"""For rank 0 to look at what can be looked at where the processes did not meet: who ends first ends them all."""

LAST_S = 1.0
"""That rank 0 ends before the others, so that a launcher ends its report with what rank 0 says."""


def connect(config: Config | None) -> tuple[World, list[Finding]]:
    """Collective. This process among the others, and what speaks against the launch; then it is alone."""
    said: list[str] = []
    try:
        if config is None:
            raise ConfigError("the settings are refused")
        with overheard() as said:
            accelerator = make_accelerator(
                mixed_precision=config.trainer.mixed_precision,
                timeout_s=min(TIMEOUT_S, config.trainer.timeout_s),
            )
        world = world_of(accelerator)
    except Exception as error:
        is_told = config is None
        world = World(rank=int(os.environ.get("RANK", 0)))
        return world, [] if is_told else [refusal(error)]
    return world, [warning("launch", text) for text in said]


def refusal(error: Exception) -> Finding:
    """Why the processes did not meet."""
    if isinstance(error, UnetdistError):
        return problem("launch", describe(error))
    text = " ".join(str(error).split())[:300]
    return problem(
        "launch", f"the processes could not be connected ({text})", "see what is said of them below"
    )


def examine(
    config: Config | None,
    *,
    refused: Sequence[Finding] = (),
    full: bool = False,
    json_file: Path | None = None,
    screen: Screen | None = None,
    budget_s: float | None = None,
) -> int:
    """Collective. Make all checks, tell of each, and write them to `json_file`; the exit code, equal on all ranks.

    Args:
        config: settings of the run; None where they are refused.
        refused: what speaks against them.
        full: read all shards, not a part of them.
        json_file: where the findings go too, on rank 0.
        screen: where they are shown.
        budget_s: seconds that each thing is measured for, about.

    Raises:
        ConfigError: `json_file` cannot be written.
    """
    world, launch = connect(config)
    is_alone = config is None or any(finding.level == "problem" for finding in launch)
    if is_alone and not world.is_main:
        time.sleep(OTHERS_S)
        return 1
    if is_alone:
        world = World()
    set_up_logging(rank=world.rank, world_size=world.world_size)
    screen = screen or Screen()
    with ExitStack() as stack:
        case = Case(
            config=config,
            world=world,
            board=Board(None if is_alone else open_store("doctor"), world),
            scratch=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unetdist-doctor-"))),
            full=full,
            launch_refused=is_alone,
        )
        case.budget_s = case.budget_s if budget_s is None else budget_s
        examination = Examination(case, tell=screen.show, at=screen.at)
        if world.is_main:
            for finding in (*refused, *launch):
                examination.note(finding, "settings" if finding in refused else "launch")
        stack.callback(leave, case)
        with screen.working():
            is_well = made(examination)
    if not world.is_main:
        if not is_well:
            time.sleep(LAST_S)
        return 0 if is_well else 1
    screen.end(examination.findings)
    if json_file is not None:
        _write(json_file, examination)
    if not is_well:
        count = sum(finding.level == "problem" for finding in examination.findings)
        tell_launcher(f"error: the doctor found {count} problem{'s' if count > 1 else ''}, told of above")
    return 0 if is_well else 1


def made(examination: Examination) -> bool:
    """Collective. Make all checks; whether all is well."""
    try:
        return examination.make(CHECKS)
    except UnetdistError as error:  # another process is gone
        if examination.case.world.is_main:
            examination.note(problem("processes", describe(error)), "processes")
        return False


def leave(case: Case) -> None:
    """End what was wired for a try; the workers of its loader end with it."""
    close = getattr(case.batches, "close", None)
    if close is not None:
        close()
    if case.trainer is None:
        return
    try:
        case.trainer.__exit__()
    except (RuntimeError, UnetdistError) as error:
        logger.warning("what was tried did not end well: %s", describe(error))


def _write(file: Path, examination: Examination) -> None:
    case = examination.case
    run = None if case.config is None else case.config.name
    found = to_mapping(examination.findings, case.measured, run=run, world_size=case.world.world_size)
    try:
        write_json(file, found)
    except OSError as error:
        raise ConfigError(
            f"--json ({file}) cannot be written ({error.strerror}); give another file."
        ) from None
