"""Runs all checks, in order, on all processes of a launch."""

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from unetdist.apps.doctor.data import check_data
from unetdist.apps.doctor.examination import Examination, Finding, Screen, describe, overheard
from unetdist.apps.doctor.folders import check_folders
from unetdist.apps.doctor.machine import check_launch, check_software
from unetdist.apps.doctor.training import check_training
from unetdist.cli.logs import console, set_up_logging, tell_launcher
from unetdist.distributed.collectives import World, make_accelerator, world_of
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import ConfigError, LaunchError, UnetdistError
from unetdist.storage.files import write_json
from unetdist.train.config import Config

# Limit of a collective that some rank does not join because it failed.
TIMEOUT_S = 120.0

# Seconds for rank 0 to finish its checks if the processes could not connect: the launcher ends all after the first.
ALONE_S = 120.0

# Head start of rank 0 at the end, so that the launcher's report ends with its message.
LAST_S = 1.0


def examine(
    config: Config | None,
    *,
    refusal: str = "",
    full: bool = False,
    json_file: Path | None = None,
    screen: Screen | None = None,
    budget_s: float = 8.0,
) -> int:
    """Collective. Run all checks and show the findings on rank 0; returns the exit code, equal on all ranks.

    Args:
        config: settings of the run; None if they were refused.
        refusal: why they were.
        full: read all shards instead of some.
        json_file: file for the findings and measurements, written by rank 0.
        screen: where rank 0 shows the findings.
        budget_s: rough limit on the seconds of each measurement.

    Raises:
        ConfigError: `json_file` cannot be written.
    """
    world, launch = connect(config)
    is_alone = config is None or any(finding.level == "problem" for finding in launch)
    if is_alone and not world.is_main:
        time.sleep(ALONE_S)
        return 1
    world = World() if is_alone else world
    set_up_logging(rank=world.rank, world_size=world.world_size)
    screen = screen or Screen()
    with ExitStack() as stack:
        was_quiet, console.quiet = console.quiet, True  # no progress bars between the findings
        stack.callback(setattr, console, "quiet", was_quiet)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="unetdist-doctor-"))
        exam = Examination(
            config=config,
            world=world,
            scratch=Path(scratch),
            store=None if is_alone else open_store("doctor"),
            full=full,
            budget_s=budget_s,
            show=screen.show if world.is_main else lambda _: None,
        )
        if refusal:
            exam.group = "settings"
            exam.problem("settings", refusal)
        run_checks(exam, launch)
    num_problems = exam.count("problem")
    if not world.is_main:
        if num_problems:
            time.sleep(LAST_S)
        return 1 if num_problems else 0
    screen.headline(exam.verdict())
    if json_file is not None:
        _write(json_file, exam)
    if num_problems:
        tell_launcher(f"error: the doctor found {num_problems} problem(s), listed above")
    return 1 if num_problems else 0


def connect(config: Config | None) -> tuple[World, list[Finding]]:
    """Collective. Connect the processes; this one's place among them, and findings on the launch."""
    if config is None:
        return World(rank=int(os.environ.get("RANK", 0))), []
    try:
        with overheard() as warnings:
            accelerator = make_accelerator(
                mixed_precision=config.trainer.mixed_precision, timeout_s=min(TIMEOUT_S, config.trainer.timeout_s)
            )
    except Exception as error:
        fact, remedy = describe(error), ""
        if not isinstance(error, UnetdistError):
            # Without GLOO_SOCKET_IFNAME, Gloo listens where the machine's name leads: often 127.0.1.1.
            fact = f"the processes could not be connected ({' '.join(str(error).split())[:300]})"
            remedy = (
                "export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, the network interface that the machines share; here "
                f"one of {', '.join(sorted(psutil.net_if_addrs()))}"
            )
        return World(rank=int(os.environ.get("RANK", 0))), [
            Finding(level="problem", what="launch", fact=fact, remedy=remedy)
        ]
    return world_of(accelerator), [Finding(level="warning", what="launch", fact=text) for text in warnings]


def run_checks(exam: Examination, launch: list[Finding]) -> None:
    """Collective. All checks; those that need something that another one found broken are left out."""
    is_connected = all(finding.level != "problem" for finding in launch)
    try:
        exam.group = "software"
        check_software(exam)
        exam.group = "launch"
        for finding in launch:
            exam.note(finding.level, finding.what, finding.fact, finding.remedy)
        check_launch(exam)
        if exam.config is None:
            return
        exam.group = "data"
        check_data(exam)
        exam.group = "folders"
        check_folders(exam)
        exam.group = "training"
        if not is_connected:
            exam.warn("training", "not tried", "fix the launch first")
        elif exam.count("problem", "data"):
            # A rank that stops at a bad sample would leave the others waiting in the middle of a step.
            exam.warn("training", "not tried", "fix the data first")
        else:
            check_training(exam)
        exam.leave()
    except LaunchError as error:
        exam.problem("processes", describe(error))


def _write(file: Path, exam: Examination) -> None:
    try:
        write_json(file, exam.to_mapping())
    except OSError as error:
        raise ConfigError(f"--json ({file}) cannot be written ({error.strerror}); give another file.") from None
