"""What is counted of each scored image, in integers, and its sums over a data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unetdist.errors import ConfigError
from unetdist.evaluation.boundary import boundary_counts
from unetdist.evaluation.calibration import NUM_BINS, reliability_counts
from unetdist.evaluation.metrics import PoissonBootstrap, confusion_matrix
from unetdist.storage.files import write_atomic


class ImageCounts:
    """Counts of images, which stay on the device until there are some: to read is to wait for it.

    Attributes:
        confusion: (C, C) int64, summed over images.
        boundary: (2, C) int64 `boundary_counts`, summed; zeros unless asked for.
        reliability: (3, NUM_BINS) int64 `reliability_counts`, summed; zeros unless asked for.
        bootstrap: sums of resampled images.
        per_image: (num_kept, C, C) int64, the confusion matrix of each image by its id; zeros for those that
            other ranks see.
    """

    READ_EVERY = 64

    def __init__(
        self,
        num_classes: int,
        *,
        replicates: int,
        boundary: bool = False,
        calibration: bool = False,
        num_kept: int = 0,
    ) -> None:
        self._with_boundary, self._with_calibration = boundary, calibration
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.boundary = torch.zeros(2, num_classes, dtype=torch.int64)
        self.reliability = torch.zeros(3, NUM_BINS, dtype=torch.int64)
        self.per_image = torch.zeros(num_kept, num_classes, num_classes, dtype=torch.int64)
        self.bootstrap = PoissonBootstrap(num_classes, replicates=replicates)
        self._unread: list[tuple[int, Tensor, Tensor]] = []

    def add(self, sample_id: int, logits: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Count one image: logits (C, H, W), pred and mask (H, W) classes; its confusion matrix, on the device."""
        others = []
        if self._with_boundary:
            others.append(boundary_counts(pred, mask, len(self.confusion)).flatten())
        if self._with_calibration:
            others.append(reliability_counts(logits, mask).flatten())
        confusion = confusion_matrix(pred, mask, len(self.confusion))
        self._unread.append((sample_id, confusion, torch.cat(others) if others else confusion.new_zeros(0)))
        if len(self._unread) == self.READ_EVERY:
            self.read()
        return confusion

    def read(self) -> None:
        """Count all that is on the device."""
        if not self._unread:
            return
        ids, confusions, others = zip(*self._unread, strict=True)
        self._unread = []
        for sample_id, confusion in zip(ids, torch.stack(confusions).cpu(), strict=True):
            self.confusion += confusion
            self.bootstrap.add(sample_id, confusion.numpy())
            if len(self.per_image):
                self.per_image[sample_id] += confusion
        other = torch.stack(others).sum(0).cpu()
        if self._with_boundary:
            self.boundary += other[: self.boundary.numel()].view_as(self.boundary)
        if self._with_calibration:
            self.reliability += other[-self.reliability.numel() :].view_as(self.reliability)

    def to_vector(self) -> Tensor:
        """All sums as one int64 vector; add those of all ranks."""
        self.read()
        return torch.cat([part.flatten() for part in self._parts()])

    def load_vector(self, vector: Tensor) -> None:
        """Take the sums of all ranks in place of this one's."""
        parts = self._parts()
        for part, values in zip(parts, torch.split(vector, [part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))

    def _parts(self) -> tuple[Tensor, ...]:
        draws = torch.from_numpy(self.bootstrap.sums)  # shares its memory
        return self.confusion, draws, self.boundary, self.reliability, self.per_image


def write_per_image(
    file: str, per_image: np.ndarray, keys: Sequence[str], class_names: Sequence[str]
) -> None:
    """Write `ids` (N,), `keys` (N,), `confusion` (N, C, C) int64, rows target, and `classes` (C,) as .npz.

    Raises:
        ConfigError: the file cannot be written, or is named as another format.
    """
    if not file.endswith(".npz"):
        raise ConfigError(f"--per-image ({file}) is written as .npz; give it a name that ends so.")
    try:
        with write_atomic(file) as out:
            np.savez_compressed(
                out,
                ids=np.arange(len(per_image)),
                keys=np.array(keys, dtype=np.str_),
                confusion=per_image,
                classes=np.array(class_names, dtype=np.str_),
            )
    except OSError as error:
        raise ConfigError(
            f"--per-image ({file}) cannot be written ({error.strerror}); give another file."
        ) from None
