"""Opens validation shards and scores models on them: for a run, and for saved weights."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from unetdist.cli.logs import progress, set_up_logging
from unetdist.data.batch import Batch
from unetdist.data.config import DataConfig
from unetdist.data.image_file import ImageRange, warn_of_other_range
from unetdist.data.labels import Palette
from unetdist.data.loader import open_data, open_reader, val_loader
from unetdist.data.workers import part_of
from unetdist.distributed.collectives import World, any_rank, make_accelerator, world_of
from unetdist.distributed.hardware import MixedPrecision, keep_all_freed
from unetdist.errors import ConfigError
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.evaluate import ExpectedCounts, PredictForRank, Report, evaluate, predict_fixed
from unetdist.model.config import InferenceConfig, LossConfig, UNetConfig
from unetdist.model.inference import Team, predict_logits, predict_rows
from unetdist.model.losses import Loss
from unetdist.model.saved_model import SavedModel, load_model


class Validator:
    """A validation set that can score any model of its classes."""

    def __init__(
        self,
        location: str,
        *,
        model_config: UNetConfig,
        palette: Palette,
        resize: tuple[int, int] | None,
        image_range: ImageRange | None,
        loss: Loss,
        cfg: ValidationConfig,
        data_cfg: DataConfig,
        num_pictures: int,
        world: World,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Open the shards at `location` to score models with the classes of `palette`, trained at the size `resize`.

        `image_range` is that of the training images; a warning is logged if these shards were made with another one.
        Reports have `loss` as their criterion and keep `num_pictures` images.

        Raises:
            ConfigError: the shards have other classes, or no valid pixel.
        """
        folder, manifest = open_data(data_cfg, location)
        if manifest.palette_records != tuple(palette.to_records()):
            raise ConfigError(
                f"{folder} has other classes than the training shards; shard both with the same Labels.txt and the "
                "same --ignore."
            )
        if not sum(manifest.class_pixels):
            raise ConfigError(f"{folder} has only ignored pixels, so it has no mIoU; use other shards.")
        if world.is_main:
            warn_of_other_range(folder, manifest.image_range, image_range)
        self.loss, self.cfg, self.world, self.autocast, self.num_pictures = loss, cfg, world, autocast, num_pictures
        self.expected = ExpectedCounts(
            str(folder), manifest.num_samples, palette.class_names, np.array(manifest.class_pixels)
        )
        # Images that were shrunk like the training images have their size already.
        self.resize = resize if manifest.resize != resize else None
        self.key_of: Callable[[int], str] = open_reader(data_cfg, folder, manifest).key
        # This rank's samples; all of them if the ranks predict each image together.
        self.batches: Iterable[Batch] = val_loader(
            data_cfg,
            manifest,
            folder,
            channels=model_config.in_channels,
            num_classes=palette.num_classes,
            batch_size=cfg.batch_size,
            rank=0 if self._is_together else world.rank,
            world_size=1 if self._is_together else world.world_size,
            local_world_size=world.local_world_size,
            pin_memory=world.device.type == "cuda",
        )

    def score(
        self, model: nn.Module, *, per_image: bool = False, is_over: Callable[[], bool] = lambda: False
    ) -> Report:
        """Collective. Score `model` exactly; it must be unwrapped and in evaluation mode.

        `per_image` keeps the confusion matrix of every image. `is_over` is called before each batch; if it returns True
        on any rank, all ranks raise `LeftEarlyError`.
        """
        num_samples, world = self.expected.num_samples, self.world
        mine = part_of(num_samples, rank=world.rank, world_size=world.world_size)
        total = num_samples if self._is_together else len(mine)
        with progress("validating", total, enabled=world.is_main) as bar, equal_kernels():
            report = evaluate(
                self._predictor(model),
                self.batches,
                expected=self.expected,
                loss=self.loss,
                cfg=self.cfg,
                device=world.device,
                num_examples=self.num_pictures,
                per_image=per_image,
                on_batch=bar.advance,
                # Ranks that predict an image together leave together: the others would wait for one that left alone.
                is_over=(lambda: any_rank(is_over(), world.device)) if self._is_together else is_over,
            )
        named = tuple(replace(each, key=self.key_of(each.id)) for each in report.examples)
        return replace(report, examples=named)

    def rehearse(self, model: nn.Module) -> None:
        """Collective. Predict this rank's first image, so that a lack of memory shows before the first epoch."""
        for batch in self.batches:
            image = batch.image.to(self.world.device)
            with equal_kernels():
                predict_fixed(self._predictor(model), image, self.cfg.batch_size)
            return

    @property
    def _is_together(self) -> bool:
        return shares_windows(self.cfg.inference, self.expected.num_samples, self.world)

    def _predictor(self, model: nn.Module) -> PredictForRank:
        if not self._is_together:
            return lambda image: self._predict(model, image)
        # The ranks take turns as the owner, which alone gets the logits and counts them.
        owners = itertools.cycle(range(self.world.world_size))
        return lambda image: self._predict_together(model, image, next(owners))

    def _predict(self, model: nn.Module, image: Tensor) -> Tensor:
        with self.autocast():
            return predict_logits(model, image, resize=self.resize, inference=self.cfg.inference).float()

    def _predict_together(self, model: nn.Module, image: Tensor, owner: int) -> Tensor | None:
        team = Team(rank=self.world.rank, world_size=self.world.world_size, owner=owner)
        with self.autocast():
            images = [
                list(predict_rows(model, one, resize=self.resize, inference=self.cfg.inference, team=team))
                for one in image[:, None]
            ]
        if team.rank != owner:
            return None
        return torch.stack([torch.cat(rows, dim=1) for rows in images]).float()


def shares_windows(inference: InferenceConfig, num_samples: int, world: World) -> bool:
    """Return whether all ranks predict each image together, window by window, instead of images of their own."""
    # With fewer than two images per rank some ranks would have none, or twice the work of others. With more images,
    # each rank predicts its own, which waits for nobody.
    return inference.window is not None and num_samples < 2 * world.world_size


@contextmanager
def equal_kernels() -> Iterator[None]:
    """Turn off autotuning, which lets each process choose the fastest convolutions there, and so its own rounding."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def evaluations(
    model_folders: Sequence[str],
    data_folder: str,
    *,
    cfg: ValidationConfig,
    num_workers: int = 2,
    mixed_precision: MixedPrecision | None = None,
) -> Iterator[tuple[list[tuple[Validator, SavedModel]], World]]:
    """Collective. Load saved models, each with a validator for the shards in `data_folder`."""
    accelerator = make_accelerator(mixed_precision=mixed_precision)
    world = world_of(accelerator)
    set_up_logging(rank=world.rank, world_size=world.world_size)
    keep_all_freed()

    models = []
    for folder in model_folders:
        saved = load_model(folder, world.device)
        validator = Validator(
            data_folder,
            model_config=saved.model.config,
            palette=saved.palette,
            resize=saved.resize,
            image_range=saved.image_range,
            loss=Loss(LossConfig(), torch.ones(saved.palette.num_classes)).to(world.device),
            cfg=cfg,
            data_cfg=DataConfig(train=data_folder, num_workers=num_workers),
            num_pictures=0,
            world=world,
            autocast=accelerator.autocast,
        )
        models.append((validator, saved))
    yield models, world
    accelerator.end_training()
