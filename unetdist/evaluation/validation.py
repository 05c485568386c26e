"""Scores a model on the validation set, with progress, pictures and the tracker."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from unetdist.cli.logs import progress
from unetdist.data.batch import Batch
from unetdist.data.labels import Palette
from unetdist.data.workers import part_of
from unetdist.distributed.collectives import World, any_rank
from unetdist.evaluation.completeness import Expected
from unetdist.evaluation.evaluate import Predict, Report, ValidationConfig, evaluate, predict_fixed
from unetdist.evaluation.examples import Example, Picture
from unetdist.model.inference import InferenceConfig, Team, predict_logits, predict_rows
from unetdist.model.losses import Loss


class Validator:
    """The validation set, ready to score any model."""

    def __init__(
        self,
        *,
        batches: Iterable[Batch],
        expected: Expected,
        palette: Palette,
        loss: Loss,
        cfg: ValidationConfig,
        world: World,
        autocast: Callable[[], AbstractContextManager[object]],
        resize: tuple[int, int] | None = None,
        key_of: Callable[[int], str],
        num_pictures: int = 0,
    ) -> None:
        """Wire a validation set.

        Args:
            batches: this rank's samples, iterated anew at each validation; all of them if `shares_windows` says so.
            expected: counts of the manifest.
            palette: classes.
            loss: criterion that is reported.
            cfg: settings.
            world: this process among the others.
            autocast: context of the forward pass.
            resize: (width, height) that the model was trained at, if the images are of another size.
            key_of: name of a sample by its id.
            num_pictures: how many predictions to keep for the eye.
        """
        self.batches, self.expected, self.palette = batches, expected, palette
        self.loss, self.cfg, self.world, self.autocast = loss, cfg, world, autocast
        self.resize, self.key_of, self.num_pictures = resize, key_of, num_pictures

    def score(
        self, model: nn.Module, *, per_image: bool = False, is_over: Callable[[], bool] = lambda: False
    ) -> Report:
        """Collective. The exact score of `model`, which must be unwrapped and in evaluation mode.

        `per_image` keeps the confusion matrix of every image. `is_over` is asked before each batch;
        where it says so on any rank, all raise `LeftEarlyError`.
        """
        num_samples, world = self.expected.num_samples, self.world
        mine = part_of(num_samples, rank=world.rank, world_size=world.world_size)
        total = num_samples if self._is_together else len(mine)
        with progress("validating", total, enabled=world.is_main) as bar, equal_kernels():
            return evaluate(
                self._predictor(model),
                self.batches,
                expected=self.expected,
                class_names=self.palette.class_names,
                loss=self.loss,
                cfg=self.cfg,
                device=world.device,
                num_examples=self.num_pictures,
                per_image=per_image,
                on_batch=bar.advance,
                # Who left while others predict an image with it would be waited for.
                is_over=(lambda: any_rank(is_over(), world.device)) if self._is_together else is_over,
            )

    def rehearse(self, model: nn.Module) -> None:
        """Collective. Predict this rank's first image: lack of memory shows before the first epoch is trained."""
        for batch in self.batches:
            image = batch.image.to(self.world.device)
            with equal_kernels():
                predict_fixed(self._predictor(model), image, self.cfg.batch_size)
            return

    def pictures(self, report: Report) -> list[Picture]:
        """The report's examples as pictures for the tracker."""
        return [self._picture(example) for example in report.examples]

    @property
    def _is_together(self) -> bool:
        return shares_windows(self.cfg.inference, self.expected.num_samples, self.world)

    def _predictor(self, model: nn.Module) -> Predict:
        """From image to logits; where ranks work together, image after image on the next of them."""
        if not self._is_together:
            return lambda image: self._predict(model, image)
        owners = itertools.cycle(range(self.world.world_size))
        return lambda image: self._predict_together(model, image, next(owners))

    def _predict(self, model: nn.Module, image: Tensor) -> Tensor:
        with self.autocast():
            return predict_logits(model, image, resize=self.resize, inference=self.cfg.inference).float()

    def _predict_together(self, model: nn.Module, image: Tensor, owner: int) -> Tensor | None:
        """Collective. The logits, on rank `owner`."""
        team = Team(rank=self.world.rank, world_size=self.world.world_size, owner=owner)
        with self.autocast():
            images = [
                list(predict_rows(model, one, resize=self.resize, inference=self.cfg.inference, team=team))
                for one in image[:, None]
            ]
        if team.rank != owner:
            return None
        return torch.stack([torch.cat(rows, dim=1) for rows in images]).float()

    def _picture(self, example: Example) -> Picture:
        key, of_image = self.key_of(example.id), (example.image, example.mask, example.pred)
        return Picture(key, *of_image, miou=example.miou, is_worst=example.is_worst)


def shares_windows(inference: InferenceConfig, num_samples: int, world: World) -> bool:
    """Whether all ranks predict each image together, window by window, in place of images of their own.

    They do where an image has windows and a rank would have fewer than two images, and some ranks none or twice as
    much to do as others. With more images than that, to predict one's own is to wait for nobody.
    """
    return inference.window is not None and num_samples < 2 * world.world_size


@contextmanager
def equal_kernels() -> Iterator[None]:
    """Without autotuning, by which each process takes the convolutions that were fastest there, and rounds by them."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
