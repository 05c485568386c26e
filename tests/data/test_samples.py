import logging
import pickle

import numpy as np
import pytest

from tests.data.small_shards import NUM_CLASSES, encode_png, numbered_sample, write_small_shards
from unetdist.data.augment import AugmentConfig, Augmenter
from unetdist.data.batch import Batch
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples, TrainDataset, ValDataset
from unetdist.data.shards import encode_mask
from unetdist.errors import DataError

IMAGE, MASK = numbered_sample(0)
BAD = {
    "truncated image": (encode_png(IMAGE)[:300], encode_mask(MASK)),
    "truncated mask": (encode_png(IMAGE), encode_mask(MASK)[:60]),
    "other size": (encode_png(IMAGE), encode_mask(MASK[:, :-1])),
    "unknown class": (encode_png(IMAGE), encode_mask(np.full_like(MASK, 3))),
}
MESSAGES = {
    "truncated image": r"image cannot be read \(.+\); replace the file. Then write its shard again.",
    "truncated mask": r"mask cannot be read \(.+\); replace the file. Then write its shard again.",
    "other size": r"mask is 15x12, image is 16x12; export the mask again and write the shard again",
    "unknown class": r"mask holds class index 3, but there are 3 classes \(0..2, 255 is ignored\); write the",
}


def open_samples(folder, encoded=None, **options):
    manifest = write_small_shards(folder, [3, 2], encoded=encoded, **options)
    return Samples(ShardReader(folder, manifest), channels=3, num_classes=NUM_CLASSES), manifest


def train_dataset(folder, encoded=None, on_bad_sample="raise"):
    samples, manifest = open_samples(folder, encoded)
    augmenter = Augmenter(AugmentConfig(), seed=0, class_pixels=manifest.class_pixels, mean=manifest.mean)
    return TrainDataset(samples, augmenter, on_bad_sample=on_bad_sample, blank_size=(12, 16))


def test_load(tmp_path):
    samples, _ = open_samples(tmp_path)
    for sample_id in range(5):
        image, mask = samples.load(sample_id)
        np.testing.assert_array_equal(image, numbered_sample(sample_id)[0])
        np.testing.assert_array_equal(mask, numbered_sample(sample_id)[1])


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_sample_is_handed_over_as_an_error(tmp_path, fault):
    item = train_dataset(tmp_path, {4: BAD[fault]})[[(0, 1), (0, 4)]]
    assert isinstance(item, DataError)
    with pytest.raises(DataError, match=r"000001.tar/scene.1/frame 4: " + MESSAGES[fault]):
        raise item
    assert str(item).endswith("To go on without it, set data.on_bad_sample: blank.")
    copy = pickle.loads(pickle.dumps(item))
    assert (str(copy), copy.source) == (str(item), item.source)


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_sample_left_blank(tmp_path, fault, caplog):
    logging.getLogger("unetdist").propagate = True
    batch = train_dataset(tmp_path, {4: BAD[fault]}, "blank")[[(0, 1), (0, 4)]]
    assert isinstance(batch, Batch)
    assert batch.num_bad == 1
    assert batch.ids.tolist() == [1, 4]
    assert (batch.mask[1] == 255).all()
    assert batch.class_pixels[1].sum() == 0
    np.testing.assert_array_equal(batch.mask[0], numbered_sample(1)[1])
    assert "left blank (epoch 0)" in caplog.text
    assert "scene.1/frame 4" in caplog.text


def test_validation_does_not_offer_to_leave_it_blank(tmp_path):
    samples, _ = open_samples(tmp_path, {1: BAD["other size"]})
    item = ValDataset(samples)[[0, 1]]
    assert isinstance(item, DataError)
    assert "frame 1: mask is 15x12" in str(item)
    assert "on_bad_sample" not in str(item)


def test_validation_batches_are_runs_of_equal_size(tmp_path):
    samples, _ = open_samples(tmp_path, sizes=[(12, 16), (12, 16), (9, 10)])
    batches = ValDataset(samples)[range(5)]
    assert isinstance(batches, list)
    assert [batch.ids.tolist() for batch in batches] == [[0, 1], [2], [3, 4]]
    assert [tuple(batch.mask.shape) for batch in batches] == [(2, 12, 16), (1, 9, 10), (2, 12, 16)]
