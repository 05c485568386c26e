"""A run's weights, scored anew on its validation set: what each image was worth, and the pictures of some."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetdist.apps.report.run import Run
from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.data.loader import DataConfig, open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.samples import Samples
from unetdist.errors import ConfigError
from unetdist.evaluation.evaluate import ValidationConfig
from unetdist.evaluation.metrics import PoissonBootstrap, mean_iou
from unetdist.evaluation.scoring import evaluations
from unetdist.model.inference import InferenceConfig
from unetdist.model.saved_model import SavedModel
from unetdist.predict import predict_image
from unetdist.storage.remote import is_network


@dataclass(frozen=True)
class Example:
    """One image of the validation set, (H, W, C) uint8, its mask and its prediction, (H, W) class indices."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    pred: NDArray[np.uint8]


@dataclass(frozen=True)
class Scored:
    """The validation set as the weights of a run see it."""

    data: str
    access: DataConfig
    saved: SavedModel
    inference: InferenceConfig
    per_image: NDArray[np.int64]
    """(N, C, C) confusion matrices by sample id, rows target."""
    keys: tuple[str, ...]
    """Name of each sample."""
    miou_interval: tuple[float, float]
    """95 %, over images."""
    iou_intervals: NDArray[np.float64]
    """(C, 2): the same of each class; nan for a class that no resampled image holds."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(C, C) of the whole set."""
        total: NDArray[np.int64] = self.per_image.sum(0)
        return total

    @property
    def image_mious(self) -> NDArray[np.float64]:
        """(N,) mIoU of each image over the classes in it or in its prediction; nan where all is ignored."""
        hits = self.per_image.diagonal(axis1=1, axis2=2)
        return mean_iou(hits, self.per_image.sum(2), self.per_image.sum(1))

    def examples(self, sample_ids: Sequence[int]) -> list[Example]:
        """These samples, read and predicted anew, each as the score saw it."""
        folder, manifest = open_data(self.access, self.data)
        samples = Samples(
            open_reader(self.access, folder, manifest),
            channels=self.saved.model.config.in_channels,
            num_classes=self.saved.palette.num_classes,
        )
        device = next(self.saved.model.parameters()).device
        saved = dataclasses.replace(
            self.saved, resize=None if manifest.resize == self.saved.resize else self.saved.resize
        )
        examples = []
        for sample_id in sample_ids:
            image, mask = samples.load(sample_id)
            pred = predict_image(saved, image, inference=self.inference, device=device)
            examples.append(Example(image, mask, pred))
        return examples


def score(run: Run, data: str | None = None, *, num_workers: int = 2) -> Scored:
    """Score the weights of `run` on `data`, by default its own validation set, as its settings ask for; in float32.

    Raises:
        ConfigError: the run has no weights or no validation set, or the classes are others.
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
    return Scored(
        data=data,
        access=DataConfig(train=data),
        saved=saved,
        inference=cfg.inference,
        per_image=report.per_image,
        keys=keys,
        miou_interval=report.interval,
        iou_intervals=class_intervals(report.per_image, replicates=cfg.bootstrap_replicates),
    )


def _own_data(run: Run) -> str:
    """Where the settings of a run say its validation set is, which must be on this machine.

    The folder may be somebody else's, so it must not choose which servers are asked.
    """
    data = run.validation_data
    if data is None:
        raise ConfigError(f"the settings of {run.folder} name no data.val; give --data SHARDS.")
    if is_network(data) or any(is_network(shard.name) for shard in Manifest.load(data).shards):
        raise ConfigError(
            f"the data.val of {run.folder}, {mask(data)}, is on a server; give it as --data if you trust it."
        )
    return data


def class_intervals(per_image: NDArray[np.int64], *, replicates: int = 1000) -> NDArray[np.float64]:
    """95 % intervals (C, 2) of each class's IoU by the bootstrap over images that gives the mIoU's.

    Args:
        per_image: (N, C, C) confusion matrices, by sample id.
        replicates: of the bootstrap.
    """
    bootstrap = PoissonBootstrap(per_image.shape[1], replicates)
    for sample_id, confusion in enumerate(per_image):
        bootstrap.add(sample_id, confusion)
    hits, targets, predictions = (bootstrap.sums[:, row, :, None] for row in range(3))
    ious = mean_iou(hits, targets, predictions)  # over one class each
    bounds = np.full((per_image.shape[1], 2), np.nan)
    for index, values in enumerate(ious.T):
        if (there := values[~np.isnan(values)]).size:
            bounds[index] = np.quantile(there, [0.025, 0.975])
    return bounds


def extremes(scored: Sequence[Scored], count: int) -> tuple[list[int], list[int]]:
    """Ids of the `count` worst and best images, by their mIoU in the mean over runs; none is among both.

    Worst first, and best first. Images without a valid pixel are left out.
    """
    mious = np.mean([each.image_mious for each in scored], axis=0)
    order = [int(index) for index in np.argsort(mious, kind="stable") if not np.isnan(mious[index])]
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = order[len(worst) :][::-1][:count]
    return worst, best
