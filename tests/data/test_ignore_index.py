import numpy as np
import torch

from tests.synthetic import PALETTE_RECORDS
from unetdist.data.batch import count_values
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.evaluation.metrics import confusion_matrix
from unetdist.model.losses import LossConfig, build_loss


def test_ignored_pixels_count_for_nothing_anywhere():
    mask = np.full((1, 4, 5), IGNORE_INDEX, np.uint8)
    counts = torch.from_numpy(count_values(mask[0]))[None, :3]
    loss = build_loss(LossConfig(dice_weight=1.0, focal_weight=1.0, lovasz_weight=1.0), num_classes=3)
    denominators = loss.denominators(counts)
    logits = torch.randn(1, 3, 4, 5)
    assert denominators.tolist() == [0, 0]
    assert float(loss(logits, torch.from_numpy(mask), denominators)) == 0
    assert not confusion_matrix(logits.argmax(1), torch.from_numpy(mask), 3).any()
    palette = Palette.from_records(PALETTE_RECORDS)
    assert (palette.to_ids(mask) == IGNORE_INDEX).all()
    assert (palette.colorize(mask) == (0, 0, 255)).all(), "the colour of the ignored label"
