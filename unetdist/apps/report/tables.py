"""The tables of a report as plain values: ratios are 0..1, None if unknown; page.html formats them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.report.run import ReportedRun
from unetdist.apps.report.scored import ScoredRun
from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.evaluation.comparison import compare
from unetdist.evaluation.metrics import Scores
from unetdist.train.config import Config

NUM_MIX_UPS = 5

# Settings that differ between any two runs and change no result.
PLACES = {"name", "runs_dir", "checkpoint.folder", "data.cache_dir"}


def results(runs: Sequence[ReportedRun], scored: Mapping[str, ScoredRun]) -> list[dict[str, Any]]:
    """One row per run: its scores, and the difference from the first run."""
    rows = []
    for run in runs:
        confusion = confusion_of(run, scored)
        scores = None if confusion is None else Scores.from_confusion(confusion, run.class_names)
        report = run.model.get("report") or {}
        anew = scored.get(run.name)
        interval = anew.miou_interval if anew else report.get("miou_interval_95")
        rows.append(
            {
                "name": run.name,
                "miou": scores and _ratio(scores.miou),
                "interval": interval and _pair(interval),
                "pixel_accuracy": scores and _ratio(scores.pixel_accuracy),
                "fw_iou": scores and _ratio(scores.fw_iou),
                "loss": report.get("loss"),
                "num_samples": len(anew.keys) if anew else report.get("num_samples"),
                "step": run.model.get("step"),
                "weights": run.weights and run.weights.name,
                "difference": _difference(runs[0].name, run.name, scored),
            }
        )
    return rows


def classes(runs: Sequence[ReportedRun], scored: Mapping[str, ScoredRun]) -> list[dict[str, Any]]:
    """One row per class; its `runs` are the scores of each run that has weights."""
    with_weights = [run for run in runs if confusion_of(run, scored) is not None]
    if not with_weights:
        return []
    first = confusion_of(with_weights[0], scored)
    assert first is not None
    fractions = first.sum(1) / max(1, int(first.sum()))
    return [
        {
            "name": record["name"],
            "color": record["color"],
            "share": float(fractions[record["index"]]),
            "runs": [_class_scores(run, record["name"], scored) for run in with_weights],
        }
        for record in with_weights[0].labels
    ]


def confusions(runs: Sequence[ReportedRun], scored: Mapping[str, ScoredRun]) -> list[dict[str, Any]]:
    """The confusion matrix of each run, rows target, with fractions of each row, and the largest mix-ups."""
    found = []
    for run in runs:
        counts = confusion_of(run, scored)
        if counts is None:
            continue
        totals = counts.sum(1)
        rows = [
            {
                "name": name,
                "total": int(total),
                "cells": [{"count": int(count), "share": int(count) / int(total) if total else None} for count in row],
            }
            for name, total, row in zip(run.class_names, totals, counts, strict=True)
        ]
        mix_ups = _mix_ups(counts, run.class_names)
        found.append({"name": run.name, "labels": run.labels, "rows": rows, "mix_ups": mix_ups})
    return found


def changes(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Settings in which the runs differ, or those of a single run that are not the default. None: not set."""
    flat = [settings.flat(run.settings) for run in runs]
    base = settings.flat(settings.defaults(Config))
    names = sorted({name for each in flat for name in each} - PLACES)
    rows = []
    for name in names:
        values = [each.get(name, base.get(name)) for each in flat]
        compared = [base.get(name), *values] if len(runs) == 1 else values
        if any(value != compared[0] for value in compared):
            rows.append({"name": name, "values": values, "default": base.get(name)})
    return rows


def course(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """How each run went."""
    return [
        {
            "name": run.name,
            "state": run.status.state if run.status else None,
            "reason": run.status.reason if run.status else "",
            "attempts": run.status.attempts if run.status else None,
            "steps": int(max((row["step"] or 0 for row in run.rows), default=0)),
            "epochs": run.latest("train/epoch"),
            "samples": run.latest("train/samples_seen"),
            "training_s": run.training_s,
            "images_per_s": _median(run, "time/images_per_s"),
            "data_wait": _data_wait(run),
            "bad_steps": run.latest("train/bad_steps"),
            "bad_samples": _total(run, "train/bad_samples"),
            "machine": run.status.machine if run.status else "",
            "performance": run.status.performance if run.status else "",
            "version": run.model.get("unetdist_version"),
        }
        for run in runs
    ]


def confusion_of(run: ReportedRun, scored: Mapping[str, ScoredRun]) -> NDArray[np.int64] | None:
    """The confusion matrix (C, C) that was counted for this report, or the one that the run saved."""
    return scored[run.name].confusion if run.name in scored else run.confusion


def _class_scores(run: ReportedRun, name: str, scored: Mapping[str, ScoredRun]) -> dict[str, Any]:
    confusion = confusion_of(run, scored)
    assert confusion is not None
    index = run.class_names.index(name)
    scores = Scores.from_confusion(confusion, run.class_names)
    interval = scored[run.name].iou_intervals[index] if run.name in scored else None
    kinds = ("iou", "dice", "precision", "recall")
    ratios = {kind: _ratio(getattr(scores, kind)[index]) for kind in kinds}
    return {**ratios, "interval": None if interval is None else _pair(interval)}


def _mix_ups(counts: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """The largest off-diagonal cells."""
    wrong = counts - np.diag(np.diag(counts))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:NUM_MIX_UPS]
    cells = [divmod(int(place), len(names)) for place in largest]
    return [
        {
            "target": names[row],
            "prediction": names[column],
            "count": int(wrong[row, column]),
            "share": float(wrong[row, column] / counts[row].sum()),
            "of_all": float(wrong[row, column] / counts.sum()),
        }
        for row, column in cells
        if wrong[row, column]
    ]


def _difference(first: str, name: str, scored: Mapping[str, ScoredRun]) -> dict[str, Any] | None:
    if name == first or first not in scored or name not in scored:
        return None
    try:
        comparison = compare(scored[first].per_image, scored[name].per_image)
    except ConfigError:  # on other images
        return None
    return {
        "value": _ratio(comparison.difference),
        "interval": _pair(comparison.interval_difference),
        "p": _ratio(comparison.p_value),
    }


def _median(run: ReportedRun, name: str) -> float | None:
    values = run.series(name)[1]
    return None if not values.size or np.isnan(values).all() else float(np.nanmedian(values))


def _total(run: ReportedRun, name: str) -> float | None:
    values = run.series(name)[1]
    return float(np.nansum(values)) if values.size else None


def _data_wait(run: ReportedRun) -> float | None:
    """Fraction of the step time that was spent waiting for data."""
    waits, steps = run.series("time/data_s")[1], run.series("time/step_s")[1]
    if len(waits) != len(steps) or not np.nansum(steps):
        return None
    return float(np.nansum(waits) / np.nansum(steps))


def _pair(interval: Any) -> tuple[float, float] | None:
    low, high = (float(bound) for bound in interval)
    return None if np.isnan(low) else (low, high)


def _ratio(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
