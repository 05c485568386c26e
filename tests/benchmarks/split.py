"""Where the time of the data path goes, whatever its functions are called: by the file that they stand in."""

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import unetdist.data

FOLDER = Path(unetdist.data.__file__).parent

STAGES = {
    "read": ("reader", "open_shard", "shards", "cache", "prefetch", "access", "manifest"),
    "decode": ("decode", "jpeg", "png", "orientation", "mask_reader"),
    "augment": ("augment", "geometry", "color"),
    "collate": ("batch", "arena"),
}
"""Files of unetdist/data by part of the path; what is left is called `other`."""

PARTS = (*STAGES, "other")

Function = tuple[str, int, str]
"""File, line and name, as the profiler has it."""


def split_time(step: Callable[[], object], num_batches: int, batch_size: int) -> dict[str, float]:
    """Microseconds per sample of each of `PARTS`: shares from a profile, scaled to the time without one."""
    for _ in range(2):
        step()
    began = time.perf_counter()
    for _ in range(num_batches):
        step()
    total = (time.perf_counter() - began) / (num_batches * batch_size) * 1e6
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(num_batches):
        step()
    profile.disable()
    shares = shares_of(pstats.Stats(profile).stats)  # type: ignore[attr-defined]
    return {part: total * shares[part] for part in PARTS}


def shares_of(
    stats: dict[Function, tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]],
) -> dict[str, float]:
    """Share of each of `PARTS` in the profiled time; foreign functions count for the file of ours that called them."""
    owners: dict[Function, dict[str, float]] = {}

    def owner(function: Function, path: tuple[Function, ...] = ()) -> dict[str, float]:
        if (stage := stage_of(function[0])) is not None:
            return {stage: 1.0}
        if function in owners:
            return owners[function]
        callers = {} if function in path else stats[function][4]
        weights: defaultdict[str, float] = defaultdict(float)
        for caller, (_, _, _, cumulative) in callers.items():
            for part, share in owner(caller, (*path, function)).items():
                weights[part] += share * max(cumulative, 1e-9)
        total = sum(weights.values())
        owners[function] = (
            {part: weight / total for part, weight in weights.items()} if total else {"other": 1.0}
        )
        return owners[function]

    seconds: defaultdict[str, float] = defaultdict(float)
    for function, (_, _, own, _, _) in stats.items():
        for part, share in owner(function).items():
            seconds[part] += share * own
    total = sum(seconds.values())
    return {part: seconds[part] / total for part in PARTS}


def stage_of(file: str) -> str | None:
    """Part of the path that a source file belongs to; None for code that is not ours."""
    path = Path(file)
    if FOLDER not in path.parents:
        return None
    stem = path.stem
    return next((stage for stage, stems in STAGES.items() if stem in stems), "other")
