"""A few real steps: whether they work, how long they take, what memory they need.

Everything is wired as for the run itself, but for its folder, which is a temporary one, and its dashboards.
"""

import math
import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, duration, ok, problem, size, warning
from unetdist.apps.doctor.memory import Peak
from unetdist.cli import settings
from unetdist.distributed.collectives import all_reduce_min
from unetdist.distributed.malloc import free_bytes
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

GROUP = "training"
MOST_STEPS = 20
TIGHT = 0.9
"""Of memory that may be needed before a warning."""


def rehearsal_of(config: Config, scratch: str) -> Config:
    """The settings of a run that leaves nothing behind."""
    values = settings.to_mapping(config)
    values["runs_dir"] = scratch
    values["checkpoint"]["folder"] = None
    values["tracking"]["tracker"] = "none"
    values["trainer"]["heartbeat_s"] = 0  # one that hangs is found by the time-out of its collective
    return settings.from_mapping(Config, values)


def build(case: Case) -> dict[str, Any]:
    """Collective. Wire the run."""
    trainer = build_trainer(rehearsal_of(case.settings, str(case.scratch)))
    trainer.stop.close()  # Ctrl-C ends the examination at once
    case.trainer = trainer
    return {
        "parameters": sum(each.numel() for each in trainer.model.parameters() if each.requires_grad),
        "steps": trainer.schedule.max_steps,
        "batch": trainer.global_batch_size,
        "epochs": trainer.schedule.max_steps * trainer.global_batch_size / trainer.num_samples,
    }


def judge_build(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """What will be trained, and for how long."""
    first = ranks[0]
    case.measured.parameters = first["parameters"]
    yield ok("network", f"{first['parameters'] / 1e6:.2f} million parameters")
    fact = f"{first['steps']:,} steps of {first['batch']} samples: {first['epochs']:.1f} passes over the data"
    yield ok("length", fact)


def first_batch(case: Case) -> float:
    """Start the loader and take its first step; seconds. Not collective: what is wrong with data shows here."""
    assert case.trainer is not None
    began = time.perf_counter()
    batches = iter(case.trainer.train_batches(0))
    first = next(batches)
    case.batches = chain([first], batches)
    return time.perf_counter() - began


def judge_first_batch(case: Case, ranks: list[float]) -> Iterator[Finding]:
    """Data comes."""
    case.measured.first_s = max(ranks)
    yield ok("first batch", f"after {duration(max(ranks))}")


def steps(case: Case) -> dict[str, Any]:
    """Collective. Rehearse, warm up, and time some steps; their number follows from the time of one."""
    trainer, batches = case.trainer, case.batches
    assert trainer is not None
    began = time.perf_counter()
    with Peak(case.world.device) as peak:
        first = next(batches)
        trainer.step.rehearse(first[0])
        trainer.step(first, 0)
        first_s = time.perf_counter() - began
        seconds = _one(case)
        wanted = int(case.budget_s / max(seconds, 1e-6))
        number = all_reduce_min(max(1, min(MOST_STEPS, wanted)), case.world.device)
        trainer.meter.restart()
        for micro_batches in trainer.meter.timed(islice(batches, number)):
            norm = trainer.step(micro_batches, 0)
        stats = trainer.meter.read(
            lr=0.0, grad_norm=norm, global_batch_size=trainer.global_batch_size, epoch=0.0, bad_steps=0
        )
    tensors, _ = trainer.run_state.pack()
    weights = trainer.evaluated_model.state_dict()
    return {
        "number": number,
        "first_s": first_s,
        "step_s": stats.step_s,
        "data_s": stats.data_s,
        "loss": stats.loss if math.isfinite(stats.loss) else None,
        "bad": trainer.step.guard.report().total,
        "not_compiled": trainer.share.problem,
        "memory": memory_of(case, peak),
        "checkpoint": sum(tensor.nbytes for tensor in tensors.values()),
        "weights": sum(tensor.nbytes for tensor in weights.values()),
    }


def _one(case: Case) -> float:
    """Collective. Seconds of a step."""
    assert case.trainer is not None
    began = time.perf_counter()
    case.trainer.step(next(case.batches), 0)
    if case.world.device.type == "cuda":
        torch.cuda.synchronize(case.world.device)
    return time.perf_counter() - began


def memory_of(case: Case, peak: Peak) -> dict[str, int]:
    """What was needed and what there is, in bytes."""
    device = case.world.device
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return {"device": peak.device_bytes, "device_total": total, "host": peak.host_bytes, "free": free_bytes()}


def judge_steps(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Steps that are made, with a finite loss, in memory that is there."""
    assert case.trainer is not None
    first, measured = ranks[0], case.measured
    measured.first_s = (measured.first_s or 0.0) + max(rank["first_s"] for rank in ranks)
    measured.step_s = max(rank["step_s"] for rank in ranks)
    measured.data_wait_s = first["data_s"]
    measured.checkpoint_bytes, measured.weights_bytes = first["checkpoint"], first["weights"]
    speed = case.trainer.global_batch_size / measured.step_s
    fact = f"{duration(measured.step_s)}, {speed:.1f} images/s, mean of {first['number']}; the first after "
    fact += duration(measured.first_s)
    if first["loss"] is None or first["bad"]:
        fact = f"{fact}; of them {first['bad']} without a finite loss or gradient"
        remedy = "lower --optim.lr, set --optim.clip_norm 1 or --trainer.mixed_precision no"
        yield problem("training step", fact, remedy)
    else:
        yield ok("training step", f"{fact}; loss {first['loss']:.3f}")
    if (reason := first["not_compiled"]) is not None:
        remedy = "try another torch, or set --performance off, which is what is used now"
        yield warning("compiler", f"not used, so steps take longer: {reason}", remedy)
    yield from judge_memory("step memory", [rank["memory"] for rank in ranks], "trainer.micro_batch_size")


def judge_memory(what: str, ranks: list[dict[str, int]], setting: str) -> Iterator[Finding]:
    """What was needed, and what is left."""
    device, host = (max(rank[name] for rank in ranks) for name in ("device", "host"))
    on_gpu = (
        f"{size(device)} of {size(min(rank['device_total'] for rank in ranks))} on the GPU, "
        if device
        else ""
    )
    fact = f"at most {on_gpu}{size(host)} per process; {size(min(rank['free'] for rank in ranks))} free then"
    is_tight = any(
        rank["device"] > TIGHT * rank["device_total"] or rank["free"] < rank["host"] * (1 - TIGHT)
        for rank in ranks
    )
    if is_tight:
        yield warning(what, fact, f"lower {setting} or data.num_workers, before something else needs some")
    else:
        yield ok(what, fact)


def _if_data(case: Case) -> str | None:
    if case.config is None:
        return ""
    if "train" not in case.data:
        return "mend the data first"
    if case.launch_refused:
        return "mend the launch first"
    if case.world.world_size > 1 and case.levels["data", "problem"]:
        return "mend the data first: ranks that fail alone hold up the others"
    return GO


def _if_built(case: Case) -> str | None:
    return GO if case.measured.parameters is not None else ""


def _if_fed(case: Case) -> str | None:
    return GO if case.measured.first_s is not None else ""


def if_stepped(case: Case) -> str | None:
    """Whether steps were timed."""
    return GO if case.measured.step_s is not None else ""


CHECKS = (
    Check(
        group=GROUP, what="training", measure=build, judge=judge_build, why_not=_if_data, is_collective=True
    ),
    Check(group=GROUP, what="first batch", measure=first_batch, judge=judge_first_batch, why_not=_if_built),
    Check(
        group=GROUP,
        what="training step",
        measure=steps,
        judge=judge_steps,
        why_not=_if_fed,
        is_collective=True,
    ),
)
