"""A few training steps and a part of a validation, with their time and memory, and the forecast from them.

Everything is wired as for the run itself, except its folder, which is a temporary one, and its dashboards.
"""

import math
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from rich.filesize import decimal as size

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.commands.doctor.environment import checkpoint_folder
from unetdist.commands.doctor.examination import Examination, Level, duration
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import all_reduce_min
from unetdist.distributed.hardware import free_bytes
from unetdist.errors import UnetdistError
from unetdist.evaluation.evaluate import LeftEarlyError
from unetdist.evaluation.validator import Validator, shares_windows
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.trainer import Trainer

MAX_STEPS = 20
# Fraction of the memory or of the free disk that a run may need before a warning.
TIGHT = 0.9
# Fraction of a step that may be spent waiting for data before a warning.
MAX_WAIT = 0.2


def check_training(exam: Examination) -> None:
    """Collective. Wire the run, take some steps, score some images, and predict time and disk."""
    trainers: list[Trainer] = []
    started: list[Iterator[list[Batch]]] = []
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="unetdist-doctor-"))

        def build() -> int:
            trainer = build_trainer(rehearsal_of(exam.config, scratch))
            trainer.stop.close()  # Ctrl-C ends the doctor at once
            stack.callback(_leave, trainer)
            trainers.append(trainer)
            return sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)

        def first_batch() -> None:
            batches = iter(trainer.train_batches(0))
            started.append(chain([next(batches)], batches))

        if (answers := exam.ask("network", build, is_collective=True)) is None:
            return
        (trainer,) = trainers
        exam.measured["parameters"] = answers[0]
        steps, batch = trainer.schedule.max_steps, trainer.global_batch_size
        passes = steps * batch / trainer.num_samples
        fact = f"{answers[0] / 1e6:.2f} million parameters; {steps:,} steps of {batch} samples: {passes:.1f} passes"
        exam.note("ok", "network", f"{fact} over the data")
        began = time.perf_counter()
        # Asked separately, and not as a collective: bad data shows here, while no other rank waits in a step.
        if exam.ask("first batch", first_batch) is None:
            return
        measure = partial(take_steps, exam, trainer, started[0], began)
        if (answers := exam.ask("training step", measure, is_collective=True)) is None:
            return
        judge_steps(exam, trainer, answers)
        if (validator := trainer.validator) is not None:
            answers = exam.ask("validation", partial(score, exam, trainer, validator), is_collective=True)
            if answers is not None:
                judge_validation(exam, trainer, validator.expected.num_samples, max(answers))
        # The batches are still open, so what is free now lacks the memory of their workers.
        judge_memory(exam, exam.gather(peak_memory(exam.world.device)))
        exam.group = "forecast"
        judge_time(exam, trainer)
        exam.ask_main("disk", lambda: find_space(exam))


def rehearsal_of(config: Config, scratch: str) -> Config:
    """The settings of a run that leaves nothing behind."""
    values = settings.to_mapping(config)
    values["runs_dir"] = scratch
    values["checkpoint"]["folder"] = None
    values["tracking"]["tracker"] = "none"
    values["trainer"]["heartbeat_s"] = 0  # the time limit of the collectives ends a rank that hangs
    return settings.from_mapping(Config, values)


def _leave(trainer: Trainer) -> None:
    try:
        trainer.__exit__()
    except (RuntimeError, UnetdistError) as error:
        logger.warning("the trial run did not end cleanly: %s", error)


def take_steps(exam: Examination, trainer: Trainer, batches: Iterator[list[Batch]], began: float) -> dict[str, Any]:
    """Collective. Warm up, then time as many steps as there is time for."""
    first = next(batches)
    trainer.step.rehearse(first[0])
    float(trainer.step(first, 0))  # waits for the device
    first_s = time.perf_counter() - began
    before_s = time.perf_counter()
    float(trainer.step(next(batches), 0))
    wanted = int(exam.budget_s / (time.perf_counter() - before_s))
    number = all_reduce_min(max(1, min(MAX_STEPS, wanted)), exam.world.device)
    trainer.meter.restart()
    for micro_batches in trainer.meter.timed(islice(batches, number)):
        norm = trainer.step(micro_batches, 0)
    stats = trainer.meter.read(
        lr=0.0, grad_norm=norm, global_batch_size=trainer.global_batch_size, epoch=0.0, bad_steps=0
    )
    # After a step, because only then does the optimizer have its moments.
    tensors, _ = trainer.run_state.pack()
    return {
        "number": number,
        "first_s": first_s,
        "step_s": stats["time/step_s"],
        "data_s": stats["time/data_s"],
        "loss": stats["train/loss"],
        "skipped": trainer.step.report_skipped().total,
        "checkpoint_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "weights_bytes": sum(tensor.nbytes for tensor in trainer.evaluated_model.state_dict().values()),
    }


def judge_steps(exam: Examination, trainer: Trainer, answers: list[dict[str, Any]]) -> None:
    """Note speed, loss, and waiting for data."""
    first, measured = answers[0], exam.measured
    measured["first_s"], measured["step_s"] = (max(rank[name] for rank in answers) for name in ("first_s", "step_s"))
    measured["data_wait_s"] = first["data_s"]
    measured |= {name: first[name] for name in ("checkpoint_bytes", "weights_bytes")}
    step_s, first_s = measured["step_s"], measured["first_s"]
    fact = f"{duration(step_s)}, {trainer.global_batch_size / step_s:.1f} images/s, mean of {first['number']}"
    fact += f"; the first after {duration(first_s)}; loss {first['loss']:.3f}"
    if skipped := first["skipped"]:
        fact += f"; {skipped} had no finite loss or gradient and were skipped"
    remedy = "lower --optim.lr, set --optim.clip_norm 1 or --trainer.mixed_precision no"
    exam.note("problem" if skipped else "ok", "training step", fact, remedy)
    waits = measured["data_wait_s"] / step_s
    workers = 2 * exam.config.data.num_workers or 2
    remedy = f"--data.num_workers {workers} if there are cores for it, or smaller images (--resize)"
    fact = f"steps wait {100 * waits:.0f} % of their time for data"
    exam.note("warning" if waits > MAX_WAIT else "ok", "loader", fact, remedy)


def score(exam: Examination, trainer: Trainer, validator: Validator) -> float:
    """Collective. Seconds that a whole validation takes this rank, from as much of it as there is time for."""
    num_begun = 0
    began = time.perf_counter()

    # At least one batch; as the first one also warms up, a short part suggests too much time, not too little.
    def is_over() -> bool:
        nonlocal num_begun
        if num_begun and time.perf_counter() - began > exam.budget_s:
            return True
        num_begun += 1
        return False

    is_shared = shares_windows(validator.cfg.inference, validator.expected.num_samples, exam.world)
    num_samples = validator.expected.num_samples / (1 if is_shared else exam.world.world_size)
    with suppress(LeftEarlyError):
        validator.score(trainer.evaluated_model, is_over=is_over)
    num_batches = math.ceil(num_samples / validator.cfg.batch_size)
    # A rank has no batch if there are fewer images than ranks.
    return (time.perf_counter() - began) * max(1.0, num_batches / max(1, num_begun))


def judge_validation(exam: Examination, trainer: Trainer, num_samples: int, seconds: float) -> None:
    """Note the time of a validation."""
    exam.measured["validation_s"] = seconds
    every = trainer.schedule.eval_every
    is_slow = seconds > every * exam.measured["step_s"]
    fact = f"{duration(seconds)} for {num_samples:,} images, {num_samples / seconds:.1f} images/s"
    remedy = f"as long as the {every:,} steps before it: raise trainer.eval_every or validation.batch_size"
    exam.note("warning" if is_slow else "ok", "validation", fact, remedy)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peaks of this process since its start, on GPU and host, and what there is; in bytes."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.max_memory_reserved(device) if is_gpu else 0,
        "device_total": torch.cuda.get_device_properties(device).total_memory if is_gpu else 0,
        "host": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "free": free_bytes(),
    }


def judge_memory(exam: Examination, answers: list[dict[str, int]]) -> None:
    """Note peak memory, and whether little is left."""
    device, host = (max(rank[name] for rank in answers) for name in ("device", "host"))
    total, free = (min(rank[name] for rank in answers) for name in ("device_total", "free"))
    on_gpu = f"{size(device)} of {size(total)} on the GPU, " if device else ""
    fact = f"at most {on_gpu}{size(host)} per process; {size(free)} left on the machine"
    is_tight = device > TIGHT * total or free < (1 - TIGHT) * host
    remedy = "lower trainer.micro_batch_size, validation.batch_size or data.num_workers"
    exam.note("warning" if is_tight else "ok", "peak memory", fact, remedy)


def judge_time(exam: Examination, trainer: Trainer) -> None:
    """Note the hours that the run will take."""
    measured, schedule = exam.measured, trainer.schedule
    steps_s = schedule.max_steps * measured["step_s"]
    number = math.ceil(schedule.max_steps / schedule.eval_every) if trainer.validator is not None else 0
    # A validation that failed is a problem of its own, and its time is then unknown.
    validations_s = number * measured.get("validation_s", 0.0)
    measured["run_s"] = measured["first_s"] + steps_s + validations_s
    parts = f"{schedule.max_steps:,} steps {duration(steps_s)}, {number:,} validation(s) {duration(validations_s)}"
    exam.note("ok", "time", f"{duration(measured['run_s'])} ({parts})")


def find_space(exam: Examination) -> tuple[Level, str, str]:
    """Whether the disk has room for the checkpoints and weights of the run."""
    measured, folder = exam.measured, checkpoint_folder(exam)
    # A new checkpoint is complete before the oldest one goes; the weights are best and last.
    number = exam.config.checkpoint.keep_last + 1
    needed = number * int(measured["checkpoint_bytes"]) + 2 * int(measured["weights_bytes"])
    measured["disk_bytes"] = needed
    fact = f"{size(needed)} for checkpoints and weights"
    if not folder.is_local:
        return "ok", f"{fact}, in {folder}", ""
    free = shutil.disk_usage(folder.path("")).free
    remedy = "free some space, give --checkpoint.folder another disk, or lower --checkpoint.keep_last"
    level: Level = "problem" if needed > free else "warning" if needed > TIGHT * free else "ok"
    return level, f"{fact}, {size(free)} free in {folder}", remedy
