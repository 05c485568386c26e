"""Sample id -> pixels, and the data sets that run in the workers and hand over their errors unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from unetdist.cli.logs import logger
from unetdist.data.augment import Augmenter
from unetdist.data.batch import Batch, BatchPool, BatchSlot, Sample, blank_sample, collate, count_values
from unetdist.data.decode import Box, Pixels, decode_image, decode_mask, decode_part, image_size
from unetdist.data.jpeg import parse_header
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.data.labels.masks import read_listed_mask
from unetdist.data.mix import RandomNumbers, mixed
from unetdist.data.reader import ShardReader
from unetdist.data.workers import MicroBatch
from unetdist.errors import DataError, SourceError, UnetdistError


class Samples:
    """Decoded and checked samples of a folder of shards."""

    def __init__(self, reader: ShardReader, *, channels: int, num_classes: int) -> None:
        self.reader = reader
        self._decode_mask: Callable[[bytes], Pixels] = decode_mask
        manifest = reader.manifest
        # Masks in other people's tars are read through the labels.
        if manifest.mask_format is not None and manifest.unknown_colors is not None:
            palette = Palette.from_records(manifest.palette_records)
            self._decode_mask = partial(read_listed_mask, palette, manifest.mask_format, manifest.unknown_colors)
        self.channels = channels
        self.num_classes = num_classes

    def load(self, sample_id: int) -> tuple[Pixels, Pixels]:
        """Image (H, W, channels) and mask (H, W); raises `DataError` with shard and key if they do not match."""
        image, mask = self.reader.read(sample_id)
        pixels = self.mask(sample_id, mask)
        return self.image(sample_id, image, pixels.shape), pixels

    def mask(self, sample_id: int, encoded: bytes) -> Pixels:
        """The mask, (H, W)."""
        height, width = self.reader.manifest.max_size
        with self._named(sample_id):
            size = image_size(encoded)
            if size is not None and size[0] * size[1] > height * width:
                raise DataError(
                    f"mask claims to be {size[1]}x{size[0]}, larger than any in this data set ({width}x{height} by the "
                    "manifest); replace the file."
                )
            return self._decode_mask(encoded)

    def image(self, sample_id: int, encoded: bytes, size: tuple[int, ...], box: Box | None = None) -> Pixels:
        """The image for a mask of `size` (H, W), or its part in `box`: (h, w, channels)."""
        with self._named(sample_id):
            # The header comes first, because an image of another size may be huge.
            header = parse_header(encoded)
            claimed = image_size(encoded) if header is None else (header.height, header.width)
            self._check_equal(claimed or size, size)
            part = decode_part(encoded, header, self.channels, box) if header and box else None
            if part is not None:
                return part
            image = decode_image(encoded, self.channels)
            self._check_equal(image.shape[:2], size)
            return image[box.slices] if box else image

    @staticmethod
    def _check_equal(image: tuple[int, ...], mask: tuple[int, ...]) -> None:
        if image != mask:
            raise DataError(f"mask is {mask[1]}x{mask[0]}, image is {image[1]}x{image[0]}; export the mask again.")

    @contextmanager
    def _named(self, sample_id: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{error} Then write its shard again.", source=self.reader.source(sample_id)) from None

    def finish(self, sample_id: int, image: Pixels, mask: Pixels) -> Sample:
        """Count the classes of the final mask; raises `DataError` for an unknown index."""
        counts = count_values(mask)
        if counts[self.num_classes : IGNORE_INDEX].any():
            unknown = self.num_classes + int(np.argmax(counts[self.num_classes : IGNORE_INDEX] > 0))
            raise DataError(
                f"mask holds class index {unknown}, but there are {self.num_classes} classes "
                f"(0..{self.num_classes - 1}, {IGNORE_INDEX} is ignored); write the shards again.",
                source=self.reader.source(sample_id),
            )
        return Sample(sample_id, image, mask, counts)


@dataclass(frozen=True)
class TrainDataset(Dataset[Batch | BatchSlot | UnetdistError]):
    """Training samples: request of a micro-batch -> augmented batch."""

    # An error is handed over as the item itself: raised in a worker, it would arrive as text with a traceback.

    samples: Samples
    augmenter: Augmenter
    on_bad_sample: Literal["raise", "blank"]
    blank_size: tuple[int, int]
    """(height, width)"""
    pool: BatchPool | None = None

    def __getitem__(self, request: MicroBatch) -> Batch | BatchSlot | UnetdistError:
        """The batch of a request, or its slot in the pool."""
        try:
            samples = self._samples(request)
            if self.pool is None or request.slot is None:
                return collate(samples, self.samples.num_classes)
            batch = collate(samples, self.samples.num_classes, into=self.pool.record(request.slot))
            return BatchSlot(self.pool.number, request.slot, batch.num_bad)
        except UnetdistError as error:
            return error

    def _samples(self, request: MicroBatch) -> list[Sample]:
        """The samples of a request, mixed with their partners; each sample is read once."""
        mixes = self.augmenter.mixer(request.keys, request.partners)
        keys = list(dict.fromkeys([*request.keys, *(mix.partner for mix in mixes if mix)]))
        encoded = self.samples.reader.read_many([sample_id for _, sample_id in keys])
        draws = self.augmenter.draws(keys)
        alone = dict(zip(keys, map(self._sample, keys, encoded, draws), strict=True))
        return [
            mixed(alone[key], alone[mix.partner], mix) if mix else alone[key]
            for key, mix in zip(request.keys, mixes, strict=True)
        ]

    def _sample(self, key: tuple[int, int], encoded: tuple[bytes, bytes] | DataError, draws: RandomNumbers) -> Sample:
        epoch, sample_id = key
        try:
            if isinstance(encoded, DataError):
                raise encoded
            image, mask = encoded
            pixels = self.samples.mask(sample_id, mask)
            params = self.augmenter.params(pixels, draws, epoch=epoch)
            size = (pixels.shape[0], pixels.shape[1])
            # Only the part of the image that the crop shows is decoded.
            part = self.samples.image(sample_id, image, size, params.window.box(size))
            augmented = self.augmenter.image(part, size, params), self.augmenter.mask(pixels, params)
            return self.samples.finish(sample_id, *augmented)
        except SourceError:
            raise
        except DataError as error:
            if self.on_bad_sample == "raise":
                error.args = (f"{error} To train without it, set data.on_bad_sample: blank.",)
                raise
            logger.warning("left blank (epoch %d): %s", epoch, error)
            return blank_sample(sample_id, self.blank_size, self.samples.channels)


@dataclass(frozen=True)
class ValDataset(Dataset[list[Batch] | UnetdistError]):
    """Validation samples: sample ids -> batches of whole images, one for each run of equal sizes."""

    samples: Samples

    def __getitem__(self, sample_ids: Sequence[int]) -> list[Batch] | UnetdistError:
        """The batches of these samples, in order."""
        try:
            loaded = [self.samples.finish(number, *self.samples.load(number)) for number in sample_ids]
            return [
                collate(list(equal), self.samples.num_classes)
                for _, equal in groupby(loaded, key=lambda sample: sample.mask.shape)
            ]
        except UnetdistError as error:
            return error
