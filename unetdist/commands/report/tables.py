"""The tables of a report as plain values: ratios are 0..1, None if unknown; page.html formats them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.cli import settings
from unetdist.commands.report.run import ReportedRun
from unetdist.errors import ConfigError
from unetdist.evaluation.comparison import compare
from unetdist.train.config import Config

NUM_MIX_UPS = 5

# Settings that differ between any two runs and change no result.
PLACES = {"name", "runs_dir", "checkpoint.folder", "data.cache_dir"}


def results(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One row per run: its scores, and the difference from the first run."""
    scores = ("miou", "miou_interval_95", "pixel_accuracy", "num_samples")
    return [
        {
            "name": run.name,
            **{score: run.report.get(score) for score in scores},
            "loss": run.saved_report.get("loss"),
            "step": run.model.get("step"),
            "weights": run.weights and run.weights.name,
            "difference": None if run is runs[0] else _difference(runs[0], run),
        }
        for run in runs
    ]


def classes(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """One row per class; its `runs` are the scores of each run that has any."""
    with_scores = [run for run in runs if run.report]
    if not with_scores:
        return []
    pixels = np.sum(with_scores[0].report["confusion"], axis=1)
    return [
        {
            "name": record["name"],
            "color": record["color"],
            "share": float(pixels[index] / max(1, pixels.sum())),
            "runs": [
                {
                    **run.report["classes"][record["name"]],
                    "interval": run.scored.iou_intervals[index] if run.scored else None,
                }
                for run in with_scores
            ],
        }
        for index, record in enumerate(with_scores[0].labels)
    ]


def confusions(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """The confusion matrix of each run, rows target, and the largest mix-ups."""
    found = []
    for run in runs:
        if run.report:
            counts = np.array(run.report["confusion"], np.int64)
            rows = [
                {"name": name, "total": sum(row), "counts": row}
                for name, row in zip(run.class_names, counts.tolist(), strict=True)
            ]
            mix_ups = largest_mix_ups(counts, run.class_names, NUM_MIX_UPS)
            found.append({"name": run.name, "labels": run.labels, "rows": rows, "mix_ups": mix_ups})
    return found


def largest_mix_ups(counts: NDArray[np.int64], names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The largest off-diagonal cells of a confusion matrix (C, C), without empty ones."""
    wrong = counts - np.diag(np.diag(counts))
    # Stable, so that the same counts always give the same page.
    largest = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        {
            "target": names[row],
            "prediction": names[column],
            "share": float(wrong[row, column] / counts[row].sum()),
            "of_all": float(wrong[row, column] / counts.sum()),
        }
        for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def changes(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Settings in which the runs differ, or those of a single run that are not the default. None: not set."""
    flat = [settings.flat(run.settings) for run in runs]
    base = settings.flat(settings.defaults(Config))
    rows = []
    for name in sorted({name for each in flat for name in each} - PLACES):
        values = [each.get(name, base.get(name)) for each in flat]
        compared = [base.get(name), *values] if len(runs) == 1 else values
        if any(value != compared[0] for value in compared):
            rows.append({"name": name, "values": values, "default": base.get(name)})
    return rows


def course(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """How each run went."""
    facts = ("state", "reason", "attempts", "machine", "performance")
    rows = []
    for run in runs:
        steps, step_s = run.series("time/step_s")
        wait, total = _reduced(np.nansum, run, "time/data_s"), _reduced(np.nansum, run, "time/step_s")
        rows.append(
            {
                "name": run.name,
                **{fact: getattr(run.status, fact, None) for fact in facts},
                "steps": max(run.rows, default=0),
                "epochs": _reduced(np.nanmax, run, "train/epoch"),
                # Without validations, whose time counts for no step.
                "training_s": float(np.nansum(step_s * np.diff(steps, prepend=0.0))) if steps.size else None,
                "data_wait": wait / total if wait is not None and total else None,
                "bad_steps": _reduced(np.nanmax, run, "train/bad_steps"),
                "bad_samples": _reduced(np.nansum, run, "train/bad_samples"),
                "version": run.model.get("unetdist_version"),
            }
        )
    return rows


def _reduced(reduce: Callable[[Any], Any], run: ReportedRun, name: str) -> float | None:
    """Reduce all values of a metric to one; None if there are none."""
    values = run.series(name)[1]
    return float(reduce(values)) if values.size else None


def _difference(first: ReportedRun, run: ReportedRun) -> dict[str, Any] | None:
    if first.scored is None or run.scored is None:
        return None
    try:
        return compare(first.scored.per_image, run.scored.per_image).to_mapping()
    except ConfigError:  # on other images
        return None
