"""Starts the processes of a command on this machine, through Accelerate's own launcher."""

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from unetdist.cli.command_line import positive_int
from unetdist.cli.commands import script
from unetdist.distributed.signals import is_launched
from unetdist.errors import LaunchError

# Variables that any launcher sets for connected processes.
RENDEZVOUS = ("RANK", "MASTER_ADDR")

# Unless the environment says otherwise: seconds for the last checkpoint, and signals that reach the processes, of which
# torchrun would leave some to kill it alone.
DEFAULTS = {"PET_SHUTDOWN_TIMEOUT": "300", "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}

# `distributed_type` of Accelerate's file for plain data parallel training.
PLAIN_TYPES = ("NO", "MULTI_GPU", "MULTI_CPU")


def add_processes_option(parser: argparse.ArgumentParser) -> None:
    """Add --processes N."""
    number = "processes on this machine (default: one per GPU, or what `accelerate config` wrote)"
    parser.add_argument("--processes", type=positive_int, metavar="N", help=number)


def start_processes(command: str, words: Sequence[str], processes: int | None, *, stopped: int = 130) -> int | None:
    """Run a command in several processes, and return its exit code.

    Args:
        command: name of the command.
        words: its options, for each process.
        processes: their number; None: what `accelerate config` wrote, or else one per GPU.
        stopped: exit code after a signal.

    Returns:
        The exit code: 0, `stopped`, or 1; None if this process is to do the work, alone or as one of a launch.

    Raises:
        LaunchError: so many processes cannot be started.
    """
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ.update(variables_of_task(os.environ))
    if is_launched() or any(name in os.environ for name in RENDEZVOUS):
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if processes not in (None, world_size):
            raise LaunchError(
                f"--processes ({processes}) differs from the {world_size} that the launcher has started; leave it out."
            )
        return None
    own = script()
    program = ["-m", "unetdist", command] if own is None else [str(own)]
    try:
        options = _options(processes)
        return None if options is None else _launch([*options, *program, *words], stopped)
    except (ValueError, RuntimeError) as error:  # of Accelerate: a line of its file, GPUs that do not exist
        raise LaunchError(f"the processes cannot be started: {error}") from None


def variables_of_task(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a launcher for one of the tasks of `srun --ntasks=N unetdist train`, which are the processes."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"])
        for _ in range(int(times or 1))
    ]
    # n[03-05,9] begins with n03
    first = re.sub(r"\[(\d+)[^]]*\]", r"\1", env["SLURM_STEP_NODELIST"]).split(",")[0]
    return {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "WORLD_SIZE": str(sum(counts)),
        "LOCAL_WORLD_SIZE": str(counts[int(env["SLURM_NODEID"])]),
        "MASTER_ADDR": first if len(counts) > 1 else "127.0.0.1",
        # Steps that run on one node at the same time use different ports.
        "MASTER_PORT": str(20000 + (10 * int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])) % 10000),
    }


def _options(processes: int | None) -> list[str] | None:
    """Options of Accelerate's launcher; None if one process is enough, which needs no launcher."""
    import torch
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    gpus = torch.cuda.device_count()
    file = load_config_from_file(None) if Path(default_config_file).is_file() else None
    if file is not None and file.distributed_type not in PLAIN_TYPES:
        raise LaunchError(
            f"{default_config_file}: distributed_type ({file.distributed_type.value}) does not work here; use "
            f"`accelerate config` to choose {', '.join(PLAIN_TYPES)}, or remove the file."
        )
    if processes is None and file is not None and file.num_machines > 1:
        return ["--multi_gpu"]
    count = processes or (gpus if file is None else file.num_processes)
    if count < 2:
        if file is not None:  # what the launcher would have set for this process
            os.environ["ACCELERATE_MIXED_PRECISION"] = str(file.mixed_precision or "no")
            os.environ["ACCELERATE_USE_CPU"] = str(bool(file.use_cpu))
            if file.gpu_ids not in (None, "all"):
                os.environ["CUDA_VISIBLE_DEVICES"] = file.gpu_ids
        return None
    if 0 < gpus < count:
        raise LaunchError(
            f"--processes ({count}) is more than this machine's {gpus} GPU(s); use {gpus}, or train on the CPU with "
            "CUDA_VISIBLE_DEVICES= before the command."
        )
    # Port 0 is any free one, so that several runs fit on one machine.
    options = ["--multi_gpu", "--num_processes", str(count), "--num_machines", "1", "--main_process_port", "0"]
    return [*options, *(["--mixed_precision", "no", "--dynamo_backend", "no"] if file is None else [])]


def _launch(words: Sequence[str], stopped: int) -> int:
    """Run Accelerate's launcher in this process, and return the exit code."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes themselves say what happened to them.
    logging.disable(logging.ERROR)
    try:
        launch_command(launch_command_parser().parse_args(words))
    except SignalException:
        return stopped
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            # SIGTERM is what the launcher ends the others with.
            if code < 0 and code != -signal.SIGTERM:
                name = signal.Signals(-code).name
                print(f"[rank {rank}] error: killed by {name}; it could not say why", file=sys.stderr)
        return stopped if stopped in codes.values() else 1
    return 0
