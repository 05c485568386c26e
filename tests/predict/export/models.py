"""A tiny model, trained on nothing, and pictures with masks for it."""

import torch

from tests.synthetic import PALETTE_RECORDS, draw
from unetdist.data.labels import Palette
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import SavedModel
from unetdist.model.unet import UNet
from unetdist.predict.export.agreement import CheckImage

PALETTE = Palette.from_records(PALETTE_RECORDS)


def saved_model(*, resize=None, **settings):
    torch.manual_seed(0)
    config = UNetConfig(**{"widths": (4, 8), **settings})
    channels = config.in_channels
    unet = UNet(config, 3, mean=[100.0] * channels, std=[50.0] * channels).eval()
    return SavedModel(unet, PALETTE, resize, {"metric": {"name": "val/miou", "value": 0.5}})


def picture(index=0, size=(24, 32)):
    image, mask = draw(index, size)
    return CheckImage(torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), torch.from_numpy(mask)[None])
