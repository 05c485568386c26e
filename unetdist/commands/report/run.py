"""A run as its folder records it, and its weights scored on its validation set."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unetdist.cli import settings
from unetdist.cli.credentials import mask, public
from unetdist.data.config import DataConfig
from unetdist.data.loader import open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.samples import Samples
from unetdist.errors import ConfigError
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.metrics import PoissonBootstrap, central_95, mean_iou
from unetdist.evaluation.validator import evaluations
from unetdist.model.config import InferenceConfig
from unetdist.model.saved_model import CONFIG_FILE, MODEL_FILE, SavedModel, read_config
from unetdist.predict import predict_image
from unetdist.storage.remote import is_network, is_url
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.train.config import SETTINGS_FILE
from unetdist.train.run_status import Status, read_status

Which = Literal["best", "last"]


@dataclass(frozen=True)
class ScoredRun:
    """A validation set, scored for this report with the weights of a run."""

    data: str
    saved: SavedModel
    inference: InferenceConfig
    report: Mapping[str, Any]
    """`Report.to_mapping` of the whole set."""
    per_image: NDArray[np.int64]
    """(N, C, C) confusion matrices by sample id, rows target."""
    keys: tuple[str, ...]
    """Keys by sample id."""
    iou_intervals: Sequence[tuple[float, float] | None]
    """95 % interval of each class; None for a class that no resampled image holds."""

    @property
    def image_mious(self) -> NDArray[np.float64]:
        """The mIoU of each image (N,) over the classes in it or in its prediction; nan if all of it is ignored."""
        hits = self.per_image.diagonal(axis1=1, axis2=2)
        return mean_iou(hits, self.per_image.sum(2), self.per_image.sum(1))

    def predict(self, sample_ids: Sequence[int]) -> list[tuple[NDArray[np.uint8], ...]]:
        """Image (H, W, C), mask and prediction (H, W) of these samples, at the size at which they were scored."""
        access = DataConfig(train=self.data)
        folder, manifest = open_data(access, self.data)
        samples = Samples(
            open_reader(access, folder, manifest),
            channels=self.saved.model.config.in_channels,
            num_classes=self.saved.palette.num_classes,
        )
        # Shards that were resized at sharding already have the model's size.
        resize = None if manifest.resize == self.saved.resize else self.saved.resize
        saved = dataclasses.replace(self.saved, resize=resize)
        device = next(self.saved.model.parameters()).device
        return [
            (image, mask, predict_image(saved, image, inference=self.inference, device=device))
            for image, mask in map(samples.load, sample_ids)
        ]


@dataclass(frozen=True)
class ReportedRun:
    """The contents of a run's folder; a run that has just begun has neither rows nor weights."""

    folder: Path
    name: str
    """Name of the folder, with as many parent folders as distinguish it from the other runs."""
    settings: Mapping[str, Any]
    rows: Mapping[int, Mapping[str, float]]
    """The values of metrics.jsonl, by step and name; nan for those that were not finite."""
    weights: Path | None
    """Folder of the reported weights."""
    model: Mapping[str, Any]
    """config.json of the weights; empty without weights."""
    status: Status | None
    scored: ScoredRun | None = None

    def series(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of the metric `name`, nan where it was not finite; empty if it never was finite."""
        found = [(step, row[name]) for step, row in self.rows.items() if name in row]
        if all(math.isnan(value) for _, value in found):  # such as the IoU of a class that the set does not hold
            found = []
        steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return steps, values

    @property
    def labels(self) -> list[Mapping[str, Any]]:
        """Records of the trained classes, by index."""
        return [record for record in self.model.get("classes", ()) if record["index"] is not None]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index."""
        return tuple(record["name"] for record in self.labels)

    @property
    def saved_report(self) -> Mapping[str, Any]:
        """`Report.to_mapping` of the validation after which the weights were saved; empty without one."""
        return self.model.get("report") or {}

    @property
    def report(self) -> Mapping[str, Any]:
        """The same for this report, if the run was scored again."""
        return self.scored.report if self.scored else self.saved_report


def read_runs(folders: Sequence[Path], which: Which = "best") -> list[ReportedRun]:
    """Read the runs in `folders`, with the `which` weights of each, or the others if those are missing.

    Raises:
        ConfigError: a folder holds no run, or the runs have different classes.
        CheckpointError: the weights are damaged.
    """
    names = _names([folder.resolve() for folder in folders])
    runs = [_read(folder, name, which) for folder, name in zip(folders, names, strict=True)]
    with_classes = [run for run in runs if run.class_names]
    for run in with_classes[1:]:
        if run.class_names != with_classes[0].class_names:
            raise ConfigError(f"{run.folder} has other classes than {with_classes[0].folder}; write a report of each.")
    return runs


def _read(folder: Path, name: str, which: Which) -> ReportedRun:
    if not any((folder / file).is_file() for file in (METRICS_FILE, SETTINGS_FILE)):
        runs = sorted(str(file.parent) for file in folder.glob(f"*/{SETTINGS_FILE}"))[:5]
        hint = folder.parent if (folder / MODEL_FILE).is_file() else ", ".join(runs) or "runs/NAME"
        raise ConfigError(
            f"{folder} holds no run ({METRICS_FILE} and {SETTINGS_FILE} are missing); give the folder of a run: {hint}."
        )
    weights = [folder / each for each in (which, "best", "last") if (folder / each / CONFIG_FILE).is_file()]
    file = folder / SETTINGS_FILE
    return ReportedRun(
        folder=folder,
        name=name,
        settings=public(settings.read_yaml(file)) if file.is_file() else {},
        rows=MetricsFile(folder / METRICS_FILE).rows(),
        weights=weights[0] if weights else None,
        model=read_config(weights[0]) if weights else {},
        status=read_status(folder),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that all differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def score_run(run: ReportedRun, data: str | None = None, *, num_workers: int = 2) -> ScoredRun:
    """Score the weights of `run` in float32 on `data`, by default its own validation set, with its own settings.

    Raises:
        ConfigError: the run has no weights or no validation set, or the shards have other classes.
        DataError: the shards cannot be read.
    """
    if run.weights is None:
        raise ConfigError(f"{run.folder} has no weights yet; wait for its first validation.")
    data = data or _own_data(run)
    cfg = settings.from_mapping(
        ValidationConfig, run.settings.get("validation") or {}, where=f"{run.folder}/config.yaml"
    )
    # The page shows neither of them, and they take time.
    scoring = dataclasses.replace(cfg, boundary=False, calibration=False)
    with evaluations([str(run.weights)], data, cfg=scoring, num_workers=num_workers) as (((validator, saved),), _):
        report = validator.score(saved.model, per_image=True)
        keys = tuple(validator.key_of(sample_id) for sample_id in range(report.num_samples))
    assert report.per_image is not None
    return ScoredRun(
        data=data,
        saved=saved,
        inference=cfg.inference,
        report=report.to_mapping(),
        per_image=report.per_image,
        keys=keys,
        iou_intervals=class_intervals(report.per_image, replicates=cfg.bootstrap_replicates),
    )


def _own_data(run: ReportedRun) -> str:
    """The validation set that the run's settings name, which must be on this machine."""
    data: str | None = (run.settings.get("data") or {}).get("val")
    if data is None:
        raise ConfigError(f"the settings of {run.folder} name no data.val; give --data SHARDS.")
    # A relative path begins in the folder where the run was started: that of the run without its runs_dir and name.
    inner = Path(str(run.settings.get("runs_dir", "runs")), str(run.settings.get("name", "")))
    started_in = Path(str(run.folder.resolve()).removesuffix(f"/{inner}"))
    if not is_url(data) and not Path(data).exists() and (started_in / data).exists():
        data = str(started_in / data)
    # The folder may be from somebody else: it must not choose which servers this machine contacts.
    if is_network(data) or any(is_network(shard.name) for shard in Manifest.load(data).shards):
        raise ConfigError(
            f"the data.val of {run.folder}, {mask(data)}, is on a server; give it as --data if you trust it."
        )
    return data


def class_intervals(per_image: NDArray[np.int64], *, replicates: int = 1000) -> list[tuple[float, float] | None]:
    """95 % interval of each class's IoU, by the bootstrap that also gives the interval of the mIoU.

    Args:
        per_image: (N, C, C) confusion matrices, by sample id.
        replicates: number of resampled sets.
    """
    bootstrap = PoissonBootstrap(per_image.shape[1], replicates)
    for sample_id, confusion in enumerate(per_image):
        bootstrap.add(sample_id, confusion)
    hits, targets, predictions = (bootstrap.sums[:, row, :, None] for row in range(3))
    ious = mean_iou(hits, targets, predictions)  # one class at a time
    return [None if np.isnan(low) else (low, high) for low, high in map(central_95, ious.T)]


def extremes(scored: Sequence[ScoredRun], count: int) -> tuple[list[int], list[int]]:
    """Ids of the `count` worst (worst first) and best images (best first) by mean mIoU over runs.

    No image is in both lists. Images without a valid pixel are left out.
    """
    mious = np.mean([each.image_mious for each in scored], axis=0)
    order = [int(index) for index in np.argsort(mious, kind="stable") if not np.isnan(mious[index])]
    # At most half, so that a few images still leave some for the best.
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = order[len(worst) :][::-1][:count]
    return worst, best
