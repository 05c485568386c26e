"""Where the time of a training step goes, read from a profile: ranges that the loop marked, and kernels on the GPU."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

PREFIX = "step: "
PARTS = ("data", "copy", "augment", "forward", "backward", "optimizer", "communication", "other")
"""`data` is the host's wait for a batch. On a GPU the other parts are the device's time, by the range in which the host
launched the work: `copy` is what comes from the host, `communication` is the part of NCCL's time in which nothing else
computed, `other` is the rest of the step: work outside of ranges, and idleness. On a CPU all is the host's time."""

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

Event = Mapping[str, Any]
Span = tuple[float, float]
"""Begin and end in microseconds."""


def split_of(events: Iterable[Event], elapsed: float, *, on_gpu: bool) -> dict[str, float]:
    """Seconds of each of `PARTS` in the `traceEvents` of a profile that lasted `elapsed` seconds."""
    events = [event for event in events if event.get("ph") == "X"]
    ranges = [
        (event["name"].removeprefix(PREFIX), _span(event))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX)
    ]
    on_host = own_time(ranges)
    if not on_gpu:
        return _with_rest(on_host, elapsed)
    parts = device_time(events, ranges)
    # What the GPU did meanwhile is in the other parts already.
    busy = union([_span(event) for event in events if event.get("cat") in ON_DEVICE])
    waits = [span for name, span in ranges if name == "data"]
    parts["data"] = _length(waits) - _overlap(union(waits), busy)
    return _with_rest(parts, elapsed)


def own_time(ranges: Iterable[tuple[str, Span]]) -> dict[str, float]:
    """Microseconds in each range by name, without the ranges inside it."""
    own: defaultdict[str, float] = defaultdict(float)
    open_ranges: list[tuple[str, float]] = []
    for name, (begin, end) in sorted(ranges, key=lambda one: (one[1][0], -one[1][1])):
        while open_ranges and open_ranges[-1][1] <= begin:
            open_ranges.pop()
        if open_ranges:
            own[open_ranges[-1][0]] -= end - begin
        own[name] += end - begin
        open_ranges.append((name, end))
    return own


def device_time(events: Sequence[Event], ranges: Sequence[tuple[str, Span]]) -> dict[str, float]:
    """Microseconds of the GPU by the innermost range in which the host launched the work, in whatever thread."""
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    begins = sorted(ranges, key=lambda one: one[1][0])
    starts = [span[0] for _, span in begins]

    def range_at(when: float | None) -> str:
        if when is not None:
            for name, (_, end) in reversed(begins[: bisect_right(starts, when)]):
                if when < end:
                    return name
        return "other"

    parts: defaultdict[str, float] = defaultdict(float)
    nccl: list[Span] = []
    computing: list[Span] = []
    for event in events:
        if event.get("cat") not in ON_DEVICE:
            continue
        if "nccl" in event["name"].lower():
            nccl.append(_span(event))
            continue
        computing.append(_span(event))
        is_from_host = event["cat"] == "gpu_memcpy" and "HtoD" in event["name"]
        where = range_at(launched.get(event.get("args", {}).get("correlation")))
        parts["copy" if is_from_host else where] += event["dur"]
    parts["communication"] = _length(union(nccl)) - _overlap(union(nccl), union(computing))
    return parts


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time as spans that do not overlap, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    assert all(one[1] < two[0] for one, two in pairwise(merged))
    return merged


def _with_rest(microseconds: Mapping[str, float], elapsed: float) -> dict[str, float]:
    parts = {part: microseconds.get(part, 0.0) / 1e6 for part in PARTS if part != "other"}
    return {**parts, "other": max(0.0, elapsed - sum(parts.values()))}


def _overlap(left: Sequence[Span], right: Sequence[Span]) -> float:
    """Microseconds that are in both; each without overlaps of its own, in order."""
    total, at = 0.0, 0
    for begin, end in left:
        while at < len(right) and right[at][1] <= begin:
            at += 1
        for other_begin, other_end in right[at:]:
            if other_begin >= end:
                break
            total += min(end, other_end) - max(begin, other_begin)
    return total


def _length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def _span(event: Event) -> Span:
    return event["ts"], event["ts"] + event["dur"]
