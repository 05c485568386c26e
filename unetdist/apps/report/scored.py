"""A run's weights scored on its validation set: a confusion matrix per image, and predictions of chosen images."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.report.run import ReportedRun
from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.data.loader import DataConfig, open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.samples import Samples
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import ValidationConfig
from unetdist.evaluation.metrics import PoissonBootstrap, mean_iou
from unetdist.evaluation.validator import evaluations
from unetdist.model.inference import InferenceConfig
from unetdist.model.saved_model import SavedModel
from unetdist.predict import predict_image
from unetdist.storage.remote import is_network


@dataclass(frozen=True)
class ScoredRun:
    """A validation set, scored with the weights of a run."""

    data: str
    access: DataConfig
    saved: SavedModel
    inference: InferenceConfig
    per_image: NDArray[np.int64]
    """(N, C, C) confusion matrices by sample id, rows target."""
    keys: tuple[str, ...]
    """Keys by sample id."""
    miou_interval: tuple[float, float]
    """95 % interval over images."""
    iou_intervals: NDArray[np.float64]
    """95 % intervals of each class (C, 2); nan for a class that no resampled image holds."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix (C, C) of the whole set."""
        total: NDArray[np.int64] = self.per_image.sum(0)
        return total

    @property
    def image_mious(self) -> NDArray[np.float64]:
        """The mIoU of each image (N,) over the classes in it or in its prediction; nan if all of it is ignored."""
        hits = self.per_image.diagonal(axis1=1, axis2=2)
        return mean_iou(hits, self.per_image.sum(2), self.per_image.sum(1))

    def predict(self, sample_ids: Sequence[int]) -> list[tuple[NDArray[np.uint8], ...]]:
        """Image (H, W, C), mask and prediction (H, W) of these samples, at the size at which they were scored."""
        folder, manifest = open_data(self.access, self.data)
        samples = Samples(
            open_reader(self.access, folder, manifest),
            channels=self.saved.model.config.in_channels,
            num_classes=self.saved.palette.num_classes,
        )
        # Shards that were resized at sharding already have the model's size.
        resize = None if manifest.resize == self.saved.resize else self.saved.resize
        saved = dataclasses.replace(self.saved, resize=resize)
        device = next(self.saved.model.parameters()).device
        loaded = map(samples.load, sample_ids)
        return [
            (image, mask, predict_image(saved, image, inference=self.inference, device=device))
            for image, mask in loaded
        ]


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
    with evaluations(
        [str(run.weights)],
        data,
        cfg=dataclasses.replace(cfg, boundary=False, calibration=False),
        num_workers=num_workers,
    ) as (((validator, saved),), _):
        report = validator.score(saved.model, per_image=True)
        keys = tuple(validator.key_of(sample_id) for sample_id in range(report.num_samples))
    assert report.per_image is not None
    return ScoredRun(
        data=data,
        access=DataConfig(train=data),
        saved=saved,
        inference=cfg.inference,
        per_image=report.per_image,
        keys=keys,
        miou_interval=report.interval,
        iou_intervals=class_intervals(report.per_image, replicates=cfg.bootstrap_replicates),
    )


def _own_data(run: ReportedRun) -> str:
    """The validation set that the run's settings name, which must be on this machine."""
    data = run.validation_data
    if data is None:
        raise ConfigError(f"the settings of {run.folder} name no data.val; give --data SHARDS.")
    # The folder may be from somebody else: it must not choose which servers this machine contacts.
    if is_network(data) or any(is_network(shard.name) for shard in Manifest.load(data).shards):
        raise ConfigError(
            f"the data.val of {run.folder}, {mask(data)}, is on a server; give it as --data if you trust it."
        )
    return data


def class_intervals(per_image: NDArray[np.int64], *, replicates: int = 1000) -> NDArray[np.float64]:
    """95 % intervals (C, 2) of each class's IoU, by the bootstrap that also gives the interval of the mIoU.

    Args:
        per_image: (N, C, C) confusion matrices, by sample id.
        replicates: number of resampled sets.
    """
    bootstrap = PoissonBootstrap(per_image.shape[1], replicates)
    for sample_id, confusion in enumerate(per_image):
        bootstrap.add(sample_id, confusion)
    hits, targets, predictions = (bootstrap.sums[:, row, :, None] for row in range(3))
    ious = mean_iou(hits, targets, predictions)  # one class at a time
    bounds = np.full((per_image.shape[1], 2), np.nan)
    for index, values in enumerate(ious.T):
        if (known := values[~np.isnan(values)]).size:
            bounds[index] = np.quantile(known, [0.025, 0.975])
    return bounds


def extremes(scored: Sequence[ScoredRun], count: int) -> tuple[list[int], list[int]]:
    """Ids of the `count` worst (worst first) and best images (best first) by mean mIoU over runs.

    No image is in both lists. Images without a valid pixel are left out.
    """
    mious = np.mean([each.image_mious for each in scored], axis=0)
    order = [int(index) for index in np.argsort(mious, kind="stable") if not np.isnan(mious[index])]
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = order[len(worst) :][::-1][:count]
    return worst, best
