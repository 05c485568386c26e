"""A few training steps and a part of a validation, with their time and memory, and the forecast from them.

Everything is wired as for the run itself, except its folder, which is a temporary one, and its dashboards.
"""

import datetime
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.filesize import decimal as size

from unetdist.apps.doctor.examination import Examination, duration
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
PROCESS = Path("/proc/self")


def check_training(exam: Examination) -> None:
    """Collective. Wire the run, take some steps, score some images, and predict time and disk."""
    trainers: list[Trainer] = []

    def build() -> dict[str, Any]:
        trainers.append(build_trainer(rehearsal_of(exam.settings, exam.scratch)))
        trainers[0].stop.close()  # Ctrl-C ends the doctor at once
        return {"parameters": sum(p.numel() for p in trainers[0].model.parameters() if p.requires_grad)}

    try:
        if (answers := exam.ask("network", build, is_collective=True)) is None:
            return
        (trainer,) = trainers
        exam.measured["parameters"] = answers[0]["parameters"]
        exam.ok("network", f"{answers[0]['parameters'] / 1e6:.2f} million parameters")
        steps, batch = trainer.schedule.max_steps, trainer.global_batch_size
        passes = steps * batch / trainer.num_samples
        exam.ok("length", f"{steps:,} steps of {batch} samples: {passes:.1f} passes over the data")
        if not _check_steps(exam, trainer):
            return
        if trainer.validator is not None:
            measure = partial(score, exam, trainer, trainer.validator)
            if (answers := exam.ask("validation", measure, is_collective=True)) is not None:
                judge_validation(exam, trainer, trainer.validator.expected.num_samples, answers)
        exam.group = "forecast"
        judge_time(exam, trainer)
        if answers := exam.ask("disk", lambda: needed_space(exam)):
            judge_space(exam, answers[0])
    finally:
        for each in trainers:
            _leave(each)


def rehearsal_of(config: Config, scratch: Path) -> Config:
    """The settings of a run that leaves nothing behind."""
    values = settings.to_mapping(config)
    values["runs_dir"] = str(scratch)
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

    `device` and `device_total` are of the GPU. `host` is the peak of this process, since its start if the kernel cannot
    reset it, plus its workers at the end; `free` is left on the machine.
    """
    memory = {"device": 0, "device_total": 0}
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")  # resets the peak; see proc(5)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield memory
    if device.type == "cuda":
        memory["device"] = torch.cuda.max_memory_reserved(device)
        memory["device_total"] = torch.cuda.get_device_properties(device).total_memory
    process = psutil.Process()
    memory["host"] = process.memory_info().rss
    with suppress(OSError):
        if found := re.search(r"(?m)^VmHWM:\s*(\d+) kB", (PROCESS / "status").read_text()):
            memory["host"] = 1024 * int(found[1])
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
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
    measured["first_s"] = max(rank["first_s"] for rank in answers)
    measured["step_s"] = max(rank["step_s"] for rank in answers)
    measured["data_wait_s"] = first["data_s"]
    measured["checkpoint_bytes"], measured["weights_bytes"] = (first["checkpoint_bytes"], first["weights_bytes"])
    speed = trainer.global_batch_size / measured["step_s"]
    fact = f"{duration(measured['step_s'])}, {speed:.1f} images/s, mean of {first['number']}; the first after "
    fact += duration(measured["first_s"])
    if first["loss"] is None or first["skipped"]:
        fact = f"{fact}; {first['skipped']} had no finite loss or gradient and were skipped"
        remedy = "lower --optim.lr, set --optim.clip_norm 1 or --trainer.mixed_precision no"
        exam.problem("training step", fact, remedy)
    else:
        exam.ok("training step", f"{fact}; loss {first['loss']:.3f}")
    if (reason := first["not_compiled"]) is not None:
        remedy = "try another torch; --performance off, which is used now, silences this"
        exam.warn("compiler", f"not used, so steps take longer: {reason}", remedy)
    waits = measured["data_wait_s"] / measured["step_s"]
    workers = exam.settings.data.num_workers
    fact = f"steps wait {100 * waits:.0f} % of their time for data"
    if waits > MAX_WAIT:
        remedy = f"--data.num_workers {2 * workers or 2} if there are cores for it, or smaller images (--resize)"
        exam.warn("loader", fact, remedy)
    else:
        exam.ok("loader", fact)
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
    if is_tight:
        exam.warn(what, fact, f"lower {setting} or data.num_workers, before the run is out of memory")
    else:
        exam.ok(what, fact)


def score(exam: Examination, trainer: Trainer, validator: Validator) -> dict[str, Any]:
    """Collective. Seconds that the whole validation set takes this rank, from as much as there is time for."""
    laps: list[float] = []

    def is_over() -> bool:
        _synchronize(exam)
        laps.append(time.perf_counter())
        return len(laps) > 1 and laps[-1] - laps[0] > exam.budget_s

    is_whole = False
    began = time.perf_counter()
    with peak_memory(exam.world.device) as memory, suppress(LeftEarlyError):
        validator.score(trainer.evaluated_model, is_over=is_over)
        is_whole = True
    seconds = time.perf_counter() - began
    if not is_whole:
        is_shared = shares_windows(validator.cfg.inference, validator.expected.num_samples, exam.world)
        mine = validator.expected.num_samples / (1 if is_shared else exam.world.world_size)
        seconds = laps[0] - began + seconds_of(math.ceil(mine / validator.cfg.batch_size), laps)
    return {"seconds": seconds, "memory": memory}


def seconds_of(num_batches: int, laps: list[float]) -> float:
    """Seconds for `num_batches`, from the times at which the first ones began; the first only warms up."""
    seconds = [after - before for before, after in pairwise(laps)]
    seconds = seconds[1:] or seconds
    return num_batches * sum(seconds) / max(1, len(seconds))


def judge_validation(exam: Examination, trainer: Trainer, num_samples: int, answers: list[dict[str, Any]]) -> None:
    """Note time and memory of a validation."""
    exam.measured["validation_s"] = seconds = max(rank["seconds"] for rank in answers)
    fact = f"{duration(seconds)} for {num_samples:,} images, {num_samples / seconds:.1f} images/s"
    every = trainer.schedule.eval_every
    if seconds > every * exam.measured["step_s"]:
        fact += f"; longer than the {every:,} steps between two validations"
        exam.warn("validation", fact, "use a larger trainer.eval_every or validation.batch_size")
    else:
        exam.ok("validation", fact)
    judge_memory(exam, "validation memory", [rank["memory"] for rank in answers], "validation.batch_size")


def judge_time(exam: Examination, trainer: Trainer) -> None:
    """Note the hours that the run will take."""
    measured, schedule = exam.measured, trainer.schedule
    steps_s = schedule.max_steps * measured["step_s"]
    parts = [f"{schedule.max_steps:,} steps {duration(steps_s)}"]
    measured["run_s"] = measured["first_s"] + steps_s
    if "validation_s" in measured:
        number = math.ceil(schedule.max_steps / schedule.eval_every)
        measured["run_s"] += number * measured["validation_s"]
        parts.append(f"{number:,} validation{'s' if number > 1 else ''} {duration(number * measured['validation_s'])}")
    end = datetime.datetime.now() + datetime.timedelta(seconds=measured["run_s"])
    fact = f"{duration(measured['run_s'])} ({', '.join(parts)}): started now, it ends on {end:%d %B at %H:%M}"
    if trainer.validator is not None and "validation_s" not in measured:
        exam.warn("time", f"{fact}, without its validations")
    else:
        exam.ok("time", fact)


def needed_space(exam: Examination) -> list[list[Any]]:
    """For each disk: a folder on it, its free bytes, and the bytes that the run will keep there."""
    measured, cfg = exam.measured, exam.settings.checkpoint
    needs = [
        # A new checkpoint is complete before the oldest one goes.
        (checkpoint_folder(exam), (cfg.keep_last + 1) * measured["checkpoint_bytes"]),
        (open_folder(existing(exam.run_dir.absolute())), 2 * measured["weights_bytes"]),  # best and last
    ]
    disks: dict[int, list[Any]] = {}
    for folder, num_bytes in needs:
        if folder.is_local:
            path = folder.path("")
            disk = disks.setdefault(path.stat().st_dev, [str(folder), shutil.disk_usage(path).free, 0])
            disk[2] += num_bytes
    measured["disk_bytes"] = sum(num_bytes for _, num_bytes in needs)
    return list(disks.values())


def judge_space(exam: Examination, disks: list[list[Any]]) -> None:
    """Note disks that are too small."""
    for where, free, needed in disks:
        fact = f"{size(needed)} for checkpoints and weights, {size(free)} free in {where}"
        if needed <= TIGHT * free:
            exam.ok("disk", fact)
        else:
            remedy = "free some space, give --checkpoint.folder another disk, or lower --checkpoint.keep_last"
            exam.note("problem" if needed > free else "warning", "disk", fact, remedy)
