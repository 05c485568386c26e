"""Sample id to pixels, and the data sets that run in the workers; their errors arrive unchanged."""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from unetdist.data.augment import Augmenter
from unetdist.data.batch import Batch, Sample, blank_sample, collate, count_values
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.reader import ShardReader
from unetdist.errors import DataError, UnetdistError
from unetdist.ignore_index import IGNORE_INDEX
from unetdist.logs import logger

Pixels = npt.NDArray[np.uint8]


class Samples:
    """Decoded and checked samples of a folder of shards."""

    def __init__(self, reader: ShardReader, *, channels: int, num_classes: int) -> None:
        self.reader = reader
        self.channels = channels
        self.num_classes = num_classes

    def load(self, sample_id: int) -> tuple[Pixels, Pixels]:
        """Image (H, W, channels) and mask (H, W); `DataError` naming shard and key where they do not fit."""
        image_bytes, mask_bytes = self.reader.read(sample_id)
        try:
            image = decode_image(image_bytes, self.channels)
            mask = decode_mask(mask_bytes)
        except DataError as error:
            raise DataError(
                f"{error} Then write its shard again.", source=self.reader.source(sample_id)
            ) from None
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"mask is {mask.shape[1]}x{mask.shape[0]}, image is {image.shape[1]}x{image.shape[0]}; "
                "export the mask again and write the shard again.",
                source=self.reader.source(sample_id),
            )
        return image, mask

    def finish(self, sample_id: int, image: Pixels, mask: Pixels) -> Sample:
        """Count the classes of the mask as it will be trained or scored on; no index may be unknown."""
        counts = count_values(mask)
        if counts[self.num_classes : IGNORE_INDEX].any():
            unknown = self.num_classes + int(np.argmax(counts[self.num_classes : IGNORE_INDEX] > 0))
            raise DataError(
                f"mask holds class index {unknown}, but there are {self.num_classes} classes "
                f"(0..{self.num_classes - 1}, {IGNORE_INDEX} is ignored); write the shards again.",
                source=self.reader.source(sample_id),
            )
        return Sample(sample_id, image, mask, counts)


class TrainDataset(Dataset[Batch | UnetdistError]):
    """Micro-batches by their list of (epoch, sample id).

    An error is handed over as the item itself: raised in a worker it would arrive as a text with a traceback.
    """

    def __init__(
        self,
        samples: Samples,
        augmenter: Augmenter,
        *,
        on_bad_sample: Literal["raise", "blank"],
        blank_size: tuple[int, int],
    ) -> None:
        self.samples = samples
        self.augmenter = augmenter
        self.on_bad_sample = on_bad_sample
        self.blank_size = blank_size

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch | UnetdistError:
        """The batch of these (epoch, sample id)."""
        try:
            return collate([self._sample(*key) for key in keys], self.samples.num_classes)
        except UnetdistError as error:
            return error

    def _sample(self, epoch: int, sample_id: int) -> Sample:
        try:
            image, mask = self.augmenter(*self.samples.load(sample_id), epoch=epoch, sample_id=sample_id)
            return self.samples.finish(sample_id, image, mask)
        except DataError as error:
            if self.on_bad_sample == "raise":
                error.args = (f"{error} To go on without it, set data.on_bad_sample: blank.",)
                raise
            logger.warning("left blank (epoch %d): %s", epoch, error)
            return blank_sample(sample_id, self.blank_size, self.samples.channels)


class ValDataset(Dataset[list[Batch] | UnetdistError]):
    """Whole pictures by their list of sample ids; neighbours of equal size make a batch."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, sample_ids: Sequence[int]) -> list[Batch] | UnetdistError:
        """The batches of these samples, in their order."""
        try:
            loaded = [self.samples.finish(number, *self.samples.load(number)) for number in sample_ids]
            return [
                collate(list(equal), self.samples.num_classes)
                for _, equal in groupby(loaded, key=lambda sample: sample.mask.shape)
            ]
        except UnetdistError as error:
            return error
