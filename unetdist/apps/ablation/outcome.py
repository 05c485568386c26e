"""What the runs of an ablation came to: scores of their last weights, and tests of each variant against the first.

Two questions, two tests. Would other seeds say the same? A paired t-test over the seeds (Student 1908, "The probable
error of a mean"), which takes the differences as normal and with two or three seeds finds only what is large. Would
other images? The randomization test of `evaluation.comparison`, on the matrices of each image summed over the seeds.
Neither is corrected for the number of variants.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.ablation.plan import LAID_BY_THE_PLAN, Plan, Run
from unetdist.apps.ablation.training import is_finished, training_s
from unetdist.cli import json_records, settings
from unetdist.cli.credentials import public
from unetdist.evaluation.comparison import Comparison, compare
from unetdist.model.saved_model import CONFIG_FILE
from unetdist.storage import files as storage


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One variant; mIoU are ratios 0..1."""

    variant: str
    changes: Mapping[str, Any]
    """Settings that are not as in the first variant, by their dotted names."""
    num_seeds: int
    """That were asked for."""
    mious: dict[int, float]
    """Of the last weights, by seed; of finished runs."""
    seconds: float | None
    """Mean time of a training; None where no run has one."""
    differences: tuple[float, ...] = ()
    """To the first variant, for each seed that both have; empty for the first."""
    over_images: Comparison | None = None
    """First variant (A) and this one (B), where both have matrices of all images of the same seeds."""

    @property
    def mean(self) -> float:
        """Over seeds; nan without any."""
        return statistics.fmean(self.mious.values()) if self.mious else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; nan with less than two."""
        return statistics.stdev(self.mious.values()) if len(self.mious) > 1 else math.nan

    @property
    def difference(self) -> float:
        """Mean over the seeds that both have; nan without any."""
        return statistics.fmean(self.differences) if self.differences else math.nan

    @property
    def p_over_seeds(self) -> float:
        """Of the paired t-test; nan with less than two pairs."""
        return paired_t_test(self.differences)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON types, nan as None."""
        return {
            "variant": self.variant,
            "changes": dict(self.changes),
            "miou": {str(seed): miou for seed, miou in self.mious.items()},
            "mean": _json(self.mean),
            "standard_deviation": _json(self.spread),
            "difference": _json(self.difference),
            "p_over_seeds": _json(self.p_over_seeds),
            "over_images": None if self.over_images is None else self.over_images.to_mapping(),
            "training_s": self.seconds,
        }


def summarise(plan: Plan) -> list[Summary]:
    """All variants with what is finished by now, the first one first.

    Raises:
        ConfigError: the matrices of two runs are of different images.
    """
    runs = {name: [run for run in plan.runs if run.variant == name] for name in plan.variants}
    first = runs[plan.variants[0]]
    of_first = _mious(first)
    summaries = []
    for name, own in runs.items():
        mious, others = _mious(own), name != plan.variants[0]
        times = [seconds for run in own if is_finished(run) and (seconds := training_s(run)) is not None]
        summaries.append(
            Summary(
                variant=name,
                changes=_changes(first[0], own[0]),
                num_seeds=len(own),
                mious=mious,
                seconds=statistics.fmean(times) if times else None,
                differences=tuple(
                    mious[seed] - of_first[seed] for seed in mious if others and seed in of_first
                ),
                over_images=_over_images(first, own) if others else None,
            )
        )
    return summaries


def paired_t_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of differences whose mean would be 0; nan for less than two."""
    if len(differences) < 2:
        return math.nan
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return float(mean == 0)
    return t_beyond(mean / spread * math.sqrt(len(differences)), len(differences) - 1)


def t_beyond(t: float, freedom: int) -> float:
    """Probability of a value at least as far from 0 as `t` under Student's distribution.

    The finite sums for whole degrees of freedom: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3
    and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    is_odd = freedom % 2
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for count in range(1 + is_odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * count / (count + 1)
    within = 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
    return max(0.0, 1 - within)


def _changes(first: Run, other: Run) -> dict[str, Any]:
    found = settings.differences(*(public(settings.to_mapping(run.config)) for run in (first, other)))
    return {name: after for name, (_, after) in found.items() if name not in LAID_BY_THE_PLAN}


def _mious(runs: Sequence[Run]) -> dict[int, float]:
    """Of the last weights of finished runs, by seed."""
    found = {}
    for run in runs:
        if is_finished(run):
            config = json_records.parse(storage.read_file(run.folder / "last" / CONFIG_FILE))
            found[run.config.seed] = float(config["metric"]["value"])
    return found


def _over_images(first: Sequence[Run], own: Sequence[Run]) -> Comparison | None:
    pairs = [
        (a, b)
        for a, b in zip(first, own, strict=True)
        if all(is_finished(run) and run.per_image_file.exists() for run in (a, b))
    ]
    if not pairs:
        return None
    a, b = (sum(_matrices(pair[side]) for pair in pairs) for side in (0, 1))
    return compare(np.asarray(a), np.asarray(b))


def _matrices(run: Run) -> NDArray[np.int64]:
    with np.load(run.per_image_file) as file:
        matrices: NDArray[np.int64] = file["confusion"]
    return matrices


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
