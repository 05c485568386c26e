"""A few training steps and a part of a validation, with their time and memory, and the forecast from them.

Everything is wired as for the run itself, except its folder, which is a temporary one, and its dashboards.
"""

import datetime
import math
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain, islice
from typing import Any

import psutil
import torch
from rich.filesize import decimal as size

from unetdist.apps.doctor.examination import Examination, Level, duration
from unetdist.apps.doctor.folders import checkpoint_folder, existing
from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import all_reduce_min
from unetdist.distributed.hardware import free_bytes
from unetdist.errors import UnetdistError
from unetdist.evaluation.evaluate import LeftEarlyError
from unetdist.evaluation.validator import Validator, shares_windows
from unetdist.storage.folders import open_folder
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
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="unetdist-doctor-"))

        def build() -> int:
            trainer = build_trainer(rehearsal_of(exam.config, scratch))
            trainer.stop.close()  # Ctrl-C ends the doctor at once
            stack.callback(_leave, trainer)
            trainers.append(trainer)
            return sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)

        if (answers := exam.ask("network", build, is_collective=True)) is None:
            return
        (trainer,) = trainers
        exam.measured["parameters"] = answers[0]
        exam.note("ok", "network", f"{answers[0] / 1e6:.2f} million parameters")
        steps, batch = trainer.schedule.max_steps, trainer.global_batch_size
        passes = steps * batch / trainer.num_samples
        exam.note("ok", "length", f"{steps:,} steps of {batch} samples: {passes:.1f} passes over the data")
        if not _check_steps(exam, trainer):
            return
        if trainer.validator is not None:
            measure = partial(score, exam, trainer, trainer.validator)
            if (answers := exam.ask("validation", measure, is_collective=True)) is not None:
                judge_validation(exam, trainer, trainer.validator.expected.num_samples, answers)
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


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, int]]:
    """Measure the memory of what runs in the context; the numbers (bytes) are there when it ends.

    `device` and `device_total` are of the GPU. `host` is the peak of this process since its start, plus its workers at
    the end; `free` is left on the machine.
    """
    memory = {"device": 0, "device_total": 0}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield memory
    if device.type == "cuda":
        memory["device"] = torch.cuda.max_memory_reserved(device)
        memory["device_total"] = torch.cuda.get_device_properties(device).total_memory
    memory["host"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            # Not the resident size, which counts what workers share with this process again for each.
            memory["host"] += child.memory_full_info().uss
    memory["free"] = free_bytes()


def _check_steps(exam: Examination, trainer: Trainer) -> bool:
    """Collective. Whether steps could be taken and timed."""
    began = time.perf_counter()
    started: list[Iterator[list[Batch]]] = []

    def first_batch() -> None:
        batches = iter(trainer.train_batches(0))
        started.append(chain([next(batches)], batches))

    # Asked separately, and not as a collective: bad data shows here, while no other rank waits in the middle of a step.
    if exam.ask("first batch", first_batch) is None:
        return False
    measure = partial(take_steps, exam, trainer, started[0], began)
    if (answers := exam.ask("training step", measure, is_collective=True)) is None:
        return False
    judge_steps(exam, trainer, answers)
    return True


def take_steps(exam: Examination, trainer: Trainer, batches: Iterator[list[Batch]], began: float) -> dict[str, Any]:
    """Collective. Warm up, then time as many steps as there is time for."""
    with peak_memory(exam.world.device) as memory:
        first = next(batches)
        trainer.step.rehearse(first[0])
        trainer.step(first, 0)
        first_s = time.perf_counter() - began
        before_s = time.perf_counter()
        trainer.step(next(batches), 0)
        _synchronize(exam)
        wanted = int(exam.budget_s / (time.perf_counter() - before_s))
        number = all_reduce_min(max(1, min(MAX_STEPS, wanted)), exam.world.device)
        trainer.meter.restart()
        for micro_batches in trainer.meter.timed(islice(batches, number)):
            norm = trainer.step(micro_batches, 0)
        stats = trainer.meter.read(
            lr=0.0, grad_norm=norm, global_batch_size=trainer.global_batch_size, epoch=0.0, bad_steps=0
        )
    tensors, _ = trainer.run_state.pack()
    return {
        "number": number,
        "first_s": first_s,
        "step_s": stats["time/step_s"],
        "data_s": stats["time/data_s"],
        "loss": stats["train/loss"] if math.isfinite(stats["train/loss"]) else None,
        "skipped": trainer.step.report_skipped().total,
        "not_compiled": trainer.step.model_with_loss.problem,
        "memory": memory,
        "checkpoint_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "weights_bytes": sum(tensor.nbytes for tensor in trainer.evaluated_model.state_dict().values()),
    }


def _synchronize(exam: Examination) -> None:
    if exam.world.device.type == "cuda":
        torch.cuda.synchronize(exam.world.device)


def judge_steps(exam: Examination, trainer: Trainer, answers: list[dict[str, Any]]) -> None:
    """Note speed, loss, compiler, waiting for data, and memory."""
    first, measured = answers[0], exam.measured
    for name in ("first_s", "step_s"):
        measured[name] = max(rank[name] for rank in answers)
    measured["data_wait_s"] = first["data_s"]
    for name in ("checkpoint_bytes", "weights_bytes"):
        measured[name] = first[name]
    speed = trainer.global_batch_size / measured["step_s"]
    fact = (
        f"{duration(measured['step_s'])}, {speed:.1f} images/s, mean of {first['number']}; the first after "
        f"{duration(measured['first_s'])}; "
    )
    is_bad = first["loss"] is None or first["skipped"] > 0
    fact += (
        f"{first['skipped']} had no finite loss or gradient and were skipped" if is_bad else f"loss {first['loss']:.3f}"
    )
    remedy = "lower --optim.lr, set --optim.clip_norm 1 or --trainer.mixed_precision no"
    exam.note("problem" if is_bad else "ok", "training step", fact, remedy)
    if (reason := first["not_compiled"]) is not None:
        remedy = "try another torch; --performance off, which is used now, silences this"
        exam.note("warning", "compiler", f"not used, so steps take longer: {reason}", remedy)
    waits = measured["data_wait_s"] / measured["step_s"]
    fact = f"steps wait {100 * waits:.0f} % of their time for data"
    workers = 2 * exam.config.data.num_workers or 2
    remedy = f"--data.num_workers {workers} if there are cores for it, or smaller images (--resize)"
    exam.note("warning" if waits > MAX_WAIT else "ok", "loader", fact, remedy)
    judge_memory(exam, "step memory", [rank["memory"] for rank in answers], "trainer.micro_batch_size")


def judge_memory(exam: Examination, what: str, answers: list[dict[str, int]], setting: str) -> None:
    """Note peak memory, and whether little is left."""
    device, host = (max(rank[name] for rank in answers) for name in ("device", "host"))
    total, free = (min(rank[name] for rank in answers) for name in ("device_total", "free"))
    on_gpu = f"{size(device)} of {size(total)} on the GPU, " if device else ""
    fact = f"at most {on_gpu}{size(host)} per process; {size(free)} left on the machine"
    is_tight = any(
        rank["device"] > TIGHT * rank["device_total"] or rank["free"] < (1 - TIGHT) * rank["host"] for rank in answers
    )
    remedy = f"lower {setting} or data.num_workers, before the run is out of memory"
    exam.note("warning" if is_tight else "ok", what, fact, remedy)


def score(exam: Examination, trainer: Trainer, validator: Validator) -> dict[str, Any]:
    """Collective. Seconds that the whole validation set takes this rank, from as much as there is time for."""
    laps: list[float] = []  # when each batch began

    def is_over() -> bool:
        _synchronize(exam)
        laps.append(time.perf_counter())
        return len(laps) > 1 and laps[-1] - laps[0] > exam.budget_s

    is_shared = shares_windows(validator.cfg.inference, validator.expected.num_samples, exam.world)
    num_samples = validator.expected.num_samples / (1 if is_shared else exam.world.world_size)
    began = time.perf_counter()
    with peak_memory(exam.world.device) as memory:
        try:
            validator.score(trainer.evaluated_model, is_over=is_over)
            seconds = time.perf_counter() - began
        except LeftEarlyError:
            seconds = laps[0] - began + seconds_of(math.ceil(num_samples / validator.cfg.batch_size), laps)
    return {"seconds": seconds, "memory": memory}


def seconds_of(num_batches: int, laps: list[float]) -> float:
    """Seconds for `num_batches`, from the times at which the first two or more began."""
    # The first batch also warms up, so it is left out where there are others.
    first = 1 if len(laps) > 2 else 0
    return num_batches * (laps[-1] - laps[first]) / (len(laps) - 1 - first)


def judge_validation(exam: Examination, trainer: Trainer, num_samples: int, answers: list[dict[str, Any]]) -> None:
    """Note time and memory of a validation."""
    exam.measured["validation_s"] = seconds = max(rank["seconds"] for rank in answers)
    every = trainer.schedule.eval_every
    is_slow = seconds > every * exam.measured["step_s"]
    fact = f"{duration(seconds)} for {num_samples:,} images, {num_samples / seconds:.1f} images/s"
    if is_slow:
        fact += f"; longer than the {every:,} steps between two validations"
    remedy = "use a larger trainer.eval_every or validation.batch_size"
    exam.note("warning" if is_slow else "ok", "validation", fact, remedy)
    judge_memory(exam, "validation memory", [rank["memory"] for rank in answers], "validation.batch_size")


def judge_time(exam: Examination, trainer: Trainer) -> None:
    """Note the hours that the run will take."""
    measured, schedule = exam.measured, trainer.schedule
    steps_s = schedule.max_steps * measured["step_s"]
    number = math.ceil(schedule.max_steps / schedule.eval_every) if trainer.validator is not None else 0
    validations_s = number * measured.get("validation_s", 0.0)
    measured["run_s"] = measured["first_s"] + steps_s + validations_s
    end = datetime.datetime.now() + datetime.timedelta(seconds=measured["run_s"])
    # A validation that failed is a problem of its own, and its time is then unknown.
    parts = f"{schedule.max_steps:,} steps {duration(steps_s)}, {number:,} validation(s) {duration(validations_s)}"
    exam.note("ok", "time", f"{duration(measured['run_s'])} ({parts}): started now, it ends on {end:%d %B at %H:%M}")


def find_space(exam: Examination) -> tuple[Level, str, str]:
    """Whether the disk has room for the checkpoints and weights of the run."""
    measured, folder = exam.measured, checkpoint_folder(exam)
    checkpoints = (exam.config.checkpoint.keep_last + 1) * int(measured["checkpoint_bytes"])
    needed = 2 * int(measured["weights_bytes"])  # best and last
    measured["disk_bytes"] = checkpoints + needed
    if folder.is_local:
        # A new checkpoint is complete before the oldest one goes.
        needed += checkpoints
    else:
        folder = open_folder(existing(exam.run_dir.absolute()))
    free = shutil.disk_usage(folder.path("")).free
    fact = f"{size(needed)} for checkpoints and weights, {size(free)} free in {folder}"
    remedy = "free some space, give --checkpoint.folder another disk, or lower --checkpoint.keep_last"
    return "problem" if needed > free else "warning" if needed > TIGHT * free else "ok", fact, remedy
