"""Runs all checks, in order, on all processes of a launch."""

from pathlib import Path

import psutil

from unetdist.cli.logs import PlainConsole, console, set_up_logging, tell_launcher
from unetdist.commands.doctor.data import check_data
from unetdist.commands.doctor.environment import check_folders, check_launch, check_software
from unetdist.commands.doctor.examination import Examination, describe, overheard
from unetdist.commands.doctor.training import check_training
from unetdist.distributed.collectives import World, make_accelerator, world_of
from unetdist.distributed.rendezvous import open_store
from unetdist.errors import LaunchError, writable
from unetdist.storage.files import write_json
from unetdist.train.config import Config

# Limit of a collective that some rank does not join because it failed.
TIMEOUT_S = 120.0


def examine(config: Config, *, json_file: Path | None = None, budget_s: float = 8.0) -> int:
    """Collective. Run all checks and print the findings on rank 0; returns the exit code, 0 on the other ranks.

    Args:
        config: settings of the run.
        json_file: file for the findings and measurements, written by rank 0.
        budget_s: rough limit on the seconds of each measurement.

    Raises:
        LaunchError: the processes could not be connected.
        ConfigError: `json_file` cannot be written.
    """
    with overheard() as warnings:
        world = connect(config)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    exam = Examination(
        config=config,
        world=world,
        store=open_store("doctor"),
        budget_s=budget_s,
        console=PlainConsole(soft_wrap=True) if world.is_main else None,
    )
    was_quiet, console.quiet = console.quiet, True  # no progress bars between the findings
    try:
        run_checks(exam, warnings)
    finally:
        console.quiet = was_quiet
    # At the first process that fails, the launcher ends all others: so only rank 0 does, and not before it has written.
    if not world.is_main:
        return 0
    exam.show_heading(exam.verdict())
    if json_file is not None:
        with writable("--json", json_file):
            write_json(json_file, exam.to_mapping())
    num_problems = exam.count("problem")
    if num_problems:
        tell_launcher(f"error: the doctor found {num_problems} problem(s), listed above")
    return 1 if num_problems else 0


def connect(config: Config) -> World:
    """Collective. Connect the processes, with a short time limit; raises `LaunchError` with the remedy."""
    timeout_s = min(TIMEOUT_S, config.trainer.timeout_s)
    try:
        return world_of(make_accelerator(mixed_precision=config.trainer.mixed_precision, timeout_s=timeout_s))
    except RuntimeError as error:
        # Without GLOO_SOCKET_IFNAME, Gloo listens where the machine's name leads: often 127.0.1.1.
        raise LaunchError(
            f"the processes could not be connected ({' '.join(str(error).split())[:300]}): export GLOO_SOCKET_IFNAME "
            "and NCCL_SOCKET_IFNAME, the network interface that the machines share; here one of "
            f"{', '.join(sorted(psutil.net_if_addrs()))}."
        ) from None


def run_checks(exam: Examination, warnings: list[str]) -> None:
    """Collective. All checks, after the warnings of the launch; training is tried only with good data."""
    try:
        exam.group = "software"
        check_software(exam)
        exam.group = "launch"
        for text in warnings:
            exam.note("warning", "launch", text)
        check_launch(exam)
        exam.group = "data"
        check_data(exam)
        exam.group = "folders"
        check_folders(exam)
        exam.group = "training"
        if exam.count("problem", "data"):
            # A rank that stops at a bad sample would leave the others waiting in the middle of a step.
            exam.note("warning", "training", "not tried", "fix the data first")
        else:
            check_training(exam)
        exam.leave()
    except LaunchError as error:
        exam.note("problem", "processes", describe(error))
