"""Whether data and sums keep pace with the steps that were timed."""

import time
from collections.abc import Iterator

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, duration, ok, size, warning
from unetdist.apps.doctor.network import reduce_seconds
from unetdist.apps.doctor.training import GROUP, if_stepped

WAITS = 0.2
"""Of a step that may be spent waiting for data, or for sums, before a warning."""
RESERVE = 1.2
"""How much faster than the training the loader should be."""


def loader(case: Case) -> float:
    """Samples per second of this rank's loader with nothing else to do, after what it had ready."""
    data, trainer = case.settings.data, case.trainer
    assert trainer is not None
    samples = 0
    deadline = time.perf_counter() + case.budget_s
    for _ in range(data.num_workers * data.prefetch):
        next(case.batches)
        if time.perf_counter() > deadline:
            break
    began = time.perf_counter()
    while not samples or time.perf_counter() - began < case.budget_s / 3:
        samples += sum(len(batch) for batch in next(case.batches))
    return samples / (time.perf_counter() - began)


def judge_loader(case: Case, ranks: list[float]) -> Iterator[Finding]:
    """Faster than the training, and the disk faster than the loader needs."""
    measured = case.measured
    assert measured.step_s is not None
    assert measured.data_wait_s is not None
    assert case.trainer is not None
    measured.loader_samples_s = len(ranks) * min(ranks)
    needed = case.trainer.global_batch_size / measured.step_s
    wait = measured.data_wait_s / measured.step_s
    fact = f"gives {measured.loader_samples_s:,.0f} samples/s, the training takes {needed:,.1f}; steps wait "
    fact += f"{100 * wait:.0f} % of their time"
    workers = case.settings.data.num_workers
    remedy = (
        f"--data.num_workers {2 * workers or 2}, if there are cores for it, or smaller pictures (--resize)"
    )
    if measured.loader_samples_s < RESERVE * needed or wait > WAITS:
        yield warning("loader", fact, remedy)
    else:
        yield ok("loader", fact)
    _, manifest = case.data["train"]
    sample_bytes = sum(shard.num_bytes for shard in manifest.shards) / manifest.num_samples
    if measured.read_bytes_s is not None:
        needed_bytes = needed * sample_bytes / len(ranks)
        fact = f"each rank needs {size(needed_bytes)}/s and reads {size(measured.read_bytes_s)}/s"
        if measured.read_bytes_s < RESERVE * needed_bytes:
            yield warning(
                "disk speed",
                fact,
                "copy the shards to a faster disk, or give file:// to keep them in a cache",
            )
        else:
            yield ok("disk speed", fact)


def sums(_: Case) -> None:
    """Nothing: it was measured before."""


def judge_sums(case: Case, _: list[None]) -> Iterator[Finding]:
    """The part of a step that gradients are on their way, if nothing is computed meanwhile."""
    measured = case.measured
    assert measured.step_s is not None
    assert measured.parameters is not None
    seconds = reduce_seconds(measured.reduce, 4 * measured.parameters)
    share = seconds / measured.step_s
    fact = f"{size(4 * measured.parameters)} of gradients in {duration(seconds)}, at most {100 * share:.0f} % of a step"
    if share > WAITS:
        yield warning(
            "sums", fact, "larger batches, or a faster network (NCCL_SOCKET_IFNAME names its interface)"
        )
    else:
        yield ok("sums", fact)


def _if_summed(case: Case) -> str | None:
    return GO if case.measured.reduce and if_stepped(case) is GO else ""


CHECKS = (
    Check(group=GROUP, what="loader", measure=loader, judge=judge_loader, why_not=if_stepped),
    Check(group=GROUP, what="sums", measure=sums, judge=judge_sums, why_not=_if_summed),
)
