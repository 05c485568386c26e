"""Refuses launches whose processes would be fewer, unconnected, or set up in another way than the user requested.

`accelerate launch` can silently start fewer processes than requested, and its environment variables override what a
script sets. The checks read the environment and the launcher's command line, before any process group exists.
"""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from unetdist.distributed.hardware import MixedPrecision
from unetdist.errors import LaunchError

# Variables that a distributed launcher sets for each process: all of them or none.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# Variables of srun and mpirun, which start several processes without connecting them.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

# Values in lower case with which Accelerate leaves a feature out.
OFF = ("", "0", "false", "no", "off", "n", "f")

# Variables that `accelerate launch` sets -> (harmless values, why others are refused and what to do instead).
OVERRIDES = {
    **dict.fromkeys(
        [f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")],
        (
            OFF,
            "another engine would change or drop the exact loss and metric; launch without it, for example as "
            "`unetdist train --processes 8`, and",
        ),
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        ("1",),
        "Accelerate would divide the loss by it a second time; set trainer.global_batch_size and "
        "trainer.micro_batch_size in the YAML, from which accumulation follows, and",
    ),
    "ACCELERATE_DYNAMO_BACKEND": (
        OFF,
        "Accelerate would compile the model behind the settings' back; leave `--dynamo_backend` out (or pass "
        "`--dynamo_backend no`) and",
    ),
    "ACCELERATE_TORCH_DEVICE": (
        OFF,
        "it would put every process on that one device; choose devices with CUDA_VISIBLE_DEVICES and",
    ),
}

# Options of `accelerate launch`, by their argparse names, that work, or that another check covers.
OBEYED = {
    *("training_script", "training_script_args", "nondefault", "module", "no_python", "quiet", "debug"),
    *("config_file", "cpu", "multi_gpu", "mixed_precision", "num_processes", "num_machines", "gpu_ids"),
    *("num_cpu_threads_per_process", "enable_cpu_affinity", "same_network", "machine_rank", "main_process_ip"),
    *("main_process_port", "mpirun_hostfile"),
}

# Options of torchrun, which `accelerate launch` does not use for a single process.
FOR_SEVERAL = ("max_restarts", "tee", "log_dir", "role", "rdzv_backend", "rdzv_conf", "monitor_interval")

# Beginnings of the names of other options -> what to do instead; the first match counts.
INSTEAD = {
    FOR_SEVERAL: (
        "leave it out, or start several processes, on CPUs with the cpu.yaml of `unetdist init --accelerate cpu`"
    ),
    ("gradient_accumulation_steps",): (
        "set trainer.global_batch_size and trainer.micro_batch_size, from which accumulation follows, and leave it out"
    ),
    ("gradient_clipping",): "set optim.clip_norm, and leave it out",
    ("dynamo_",): "leave it out: performance: auto compiles where that is faster",
    ("fp8_",): "leave it out, and set trainer.mixed_precision to bf16 or fp16",
    ("tpu", "vm", "env", "main_training_function", "downcast_bf16", "aws_"): (
        "leave it out: training runs on the GPUs or CPUs of machines that you start yourself"
    ),
    ("",): "leave it out: every process holds the whole network, as plain data parallel training (DDP) does",
}

# Values that change nothing, besides the launcher's defaults.
HARMLESS = {"gradient_accumulation_steps": 1, "dynamo_backend": "no"}

# Sections of the launcher's file that work, or that OVERRIDES covers. It passes no other on, and names none of them.
OBEYED_SECTIONS = ("dynamo_config", "mpirun_config")


def check_launch(
    env: Mapping[str, str] = os.environ, *, num_gpus: int = 0, command: Sequence[str] | None = None
) -> None:
    """Refuse a launch in which training would silently differ from the request.

    `num_gpus` is what this process sees (0: it trains on the CPU), and `command` the words of the launcher's command
    line; None: those of the parent process.

    Raises:
        LaunchError: explains what is wrong and what to type instead.
    """
    args = _launcher_arguments(command)
    asked = _asked_processes(args) if args else None
    _check_connected(env, asked)
    _check_counts(env, asked, num_gpus)
    _check_overrides(env, num_gpus)
    if args:
        _check_options(env, args)


def agreed_precision(asked: MixedPrecision | None, env: Mapping[str, str] = os.environ) -> MixedPrecision:
    """The number format of this launch: that of the settings, or else of the launcher, or else `no`.

    Raises:
        LaunchError: settings and launcher name different ones, or the launcher one that does not work here.
    """
    # "no" is what Accelerate's launcher writes when nothing was asked for, so it contradicts no setting
    launched = env.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    chosen = next((known for known in get_args(MixedPrecision) if known == launched), None)
    if chosen is None or (chosen != "no" and asked not in (None, chosen)):
        other = f"mixed_precision is {asked}" if chosen else "it must be no, fp16 or bf16"
        raise LaunchError(
            f"the launcher's --mixed_precision, or that in its file, is {launched} (ACCELERATE_MIXED_PRECISION), and "
            f"here {other}; leave one of them out, or pass `--mixed_precision {asked or 'no'}` to the launcher."
        )
    return asked or chosen


def _check_options(env: Mapping[str, str], args: Namespace) -> None:
    """Refuse options of `accelerate launch`, and lines of its file, that would silently have no effect."""
    defaults = vars(launch_command_parser().parse_args([args.training_script]))
    unheard = {}
    for name, value in vars(args).items():
        is_heard = name in OBEYED or (name in FOR_SEVERAL and "RANK" in env)
        if not is_heard and value not in (defaults[name], HARMLESS.get(name)):
            unheard[name] = f"--{name} ({value})"
    file, from_file = _config_file(args)
    for name, value in from_file.items():
        is_section = name.endswith("_config") and name not in OBEYED_SECTIONS
        if (is_section or name.startswith(("tpu_", "downcast_"))) and value not in (None, {}, [], False, "no"):
            unheard[name] = f"--config_file {file}: {name} ({value})"
    for name, text in unheard.items():
        remedy = next(remedy for beginnings, remedy in INSTEAD.items() if name.startswith(beginnings))
        raise LaunchError(f"accelerate launch {text} does nothing here; {remedy}.")


def _config_file(args: Namespace) -> tuple[str, dict[str, Any]]:
    """Path and values of the configuration file that `accelerate launch` reads; "" and {} if it reads none."""
    if args.config_file is None and (args.cpu or not Path(default_config_file).is_file()):
        return "", {}
    file = str(args.config_file or default_config_file)
    return file, vars(load_config_from_file(file))


def _asked_processes(args: Namespace) -> int | None:
    """Number of processes requested from `accelerate launch`, over all machines; None if there was no number.

    The environment of a rank does not contain it, so it is read as Accelerate reads it: from the command line, or from
    the configuration file.
    """
    if args.num_processes is not None:
        return int(args.num_processes)
    _, from_file = _config_file(args)
    return max(int(from_file.get("num_processes", 0)), 0) or None


def _launcher_arguments(command: Sequence[str] | None) -> Namespace | None:
    """Arguments of `accelerate launch`, by default the parent process; None if that is another program."""
    if command is None:
        try:
            command = psutil.Process(os.getppid()).cmdline()
        except psutil.Error:
            return None
    # the interpreter comes before `accelerate launch`, `accelerate-launch` or `-m accelerate.commands.launch`
    for index, word in enumerate(command[:6]):
        name, words = Path(word).name, list(command[index + 1 :])
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[:1] == ["launch"]:
            words = words[1:]
        elif name not in ("accelerate-launch", "accelerate.commands.launch"):
            continue
        args: Namespace = launch_command_parser().parse_args(words)
        return args
    return None


def _check_connected(env: Mapping[str, str], asked: int | None) -> None:
    if "RANK" not in env:
        if "MASTER_ADDR" in env:
            raise LaunchError(
                "accelerate launch started one process only (MASTER_ADDR is set, RANK is not). `--cpu`, a "
                "MULTI_CPU configuration, and `--num_processes` above the number of GPUs do this. Type "
                f"`unetdist train --processes {asked or 2} ...` for CPU processes, or leave `--num_processes` out for "
                "one. If your shell exports MASTER_ADDR, `unset MASTER_ADDR`."
            )
        for name in TASK_COUNTS:
            if int(env.get(name) or 1) > 1:
                raise LaunchError(
                    f"{name} ({env[name]}) says that several processes were started, but RANK is not set, so "
                    "each would train alone and overwrite the others. Start one `accelerate launch` per "
                    "machine, as train.sbatch of `unetdist init --slurm` does, or each process with `srun unetdist`."
                )
    present = [name for name in RENDEZVOUS if name in env]
    missing = [name for name in RENDEZVOUS if name not in env]
    if present and missing and present != ["MASTER_PORT"]:
        raise LaunchError(
            f"{', '.join(present)} set but not {', '.join(missing)}: left over in the shell, or set by a "
            "launcher that does not connect its processes. Start with `accelerate launch`, or "
            f"`unset {' '.join(present)}`."
        )


def _check_counts(env: Mapping[str, str], asked: int | None, num_gpus: int) -> None:
    world_size, local_size = int(env.get("WORLD_SIZE", 1)), int(env.get("LOCAL_WORLD_SIZE", 1))
    if asked is not None and world_size < asked:
        machines = max(world_size // local_size, 1)
        below, above = asked // machines * machines, -(-asked // machines) * machines
        choice = f"{below} or {above}" if 0 < below < above else f"{above}"
        raise LaunchError(
            f"accelerate launch was asked for {asked} processes and started {world_size}. `--num_processes` "
            f"is the total over all machines and must be a multiple of `--num_machines` ({machines}); "
            f"use `--num_processes {choice}`."
        )
    if num_gpus and local_size > num_gpus:
        raise LaunchError(
            f"{local_size} processes on this machine would share {num_gpus} GPU(s), which NCCL cannot do; "
            f"type `accelerate launch --num_processes {num_gpus} ...` (the total over all machines), or hide "
            "the GPUs: `CUDA_VISIBLE_DEVICES= unetdist train --processes 2 ...`."
        )


def _check_overrides(env: Mapping[str, str], num_gpus: int) -> None:
    for name, (harmless, reason) in OVERRIDES.items():
        if name in env and env[name].lower() not in harmless:
            raise LaunchError(f"{name} ({env[name]}): {reason} `unset {name}`.")
    if num_gpus and env.get("ACCELERATE_USE_CPU", "").lower() not in OFF:
        raise LaunchError(
            f"ACCELERATE_USE_CPU ({env['ACCELERATE_USE_CPU']}) would train on the CPU and leave {num_gpus} GPU(s) "
            "idle; leave `--cpu` and `use_cpu: true` out and `unset ACCELERATE_USE_CPU`, or, to train on the CPU, hide "
            "the GPUs: `CUDA_VISIBLE_DEVICES= accelerate launch ...`."
        )
