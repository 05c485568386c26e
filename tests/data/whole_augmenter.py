"""Augments whole samples; training decodes only the part of an image that its crop needs."""

import numpy as np

from unetdist.data.augment import Augmenter


class WholeAugmenter(Augmenter):
    def __call__(self, image, mask, *, epoch, sample_id) -> tuple[np.ndarray, np.ndarray]:
        params = self.params(mask, self.draws([(epoch, sample_id)])[0], epoch=epoch)
        part = image[params.window.box(mask.shape).slices]
        return self.image(part, mask.shape, params), self.mask(mask, params)
