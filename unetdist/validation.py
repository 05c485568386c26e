"""Scores a model on the validation set, with progress, pictures and the tracker."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from unetdist.completeness import Expected
from unetdist.data.batch import Batch
from unetdist.data.labels import Palette
from unetdist.data.requests import part_of
from unetdist.distributed import World
from unetdist.evaluate import Example, Report, ValidationConfig, evaluate, predict_fixed
from unetdist.inference import predict_logits
from unetdist.logs import progress
from unetdist.losses import Loss
from unetdist.tracking import Picture


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
            batches: this rank's samples, iterated anew at each validation.
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
        mine = part_of(self.expected.num_samples, rank=self.world.rank, world_size=self.world.world_size)
        with progress("validating", len(mine), enabled=self.world.is_main) as bar, equal_kernels():
            return evaluate(
                lambda image: self._predict(model, image),
                self.batches,
                expected=self.expected,
                class_names=self.palette.class_names,
                loss=self.loss,
                cfg=self.cfg,
                device=self.world.device,
                num_examples=self.num_pictures,
                per_image=per_image,
                on_batch=bar.advance,
                is_over=is_over,
            )

    def rehearse(self, model: nn.Module) -> None:
        """Predict this rank's first image, so that lack of memory shows before the first epoch is trained."""
        for batch in self.batches:
            image = batch.image.to(self.world.device)
            with equal_kernels():
                predict_fixed(lambda image: self._predict(model, image), image, self.cfg.batch_size)
            return

    def pictures(self, report: Report) -> list[Picture]:
        """The report's examples as pictures for the tracker."""
        return [self._picture(example) for example in report.examples]

    def _predict(self, model: nn.Module, image: Tensor) -> Tensor:
        with self.autocast():
            return predict_logits(model, image, resize=self.resize).float()

    def _picture(self, example: Example) -> Picture:
        image = rearrange(example.image, "c h w -> h w c").numpy()
        return Picture(
            self.key_of(example.id), image, example.mask.numpy(), example.pred.to(torch.uint8).numpy()
        )


@contextmanager
def equal_kernels() -> Iterator[None]:
    """Without autotuning, by which each process takes the convolutions that were fastest there, and rounds by them."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
