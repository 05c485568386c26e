import io
import logging
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.small_shards import NUM_CLASSES, encode_png, numbered_sample, write_small_shards
from tests.data.whole_augmenter import WholeAugmenter
from unetdist.data.batch import Batch
from unetdist.data.config import AugmentConfig
from unetdist.data.decode import Box, decode_part
from unetdist.data.jpeg import parse_header
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples, TrainDataset, ValDataset
from unetdist.data.shards import encode_mask
from unetdist.data.workers import MicroBatch
from unetdist.errors import DataError, SourceError

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
    "other size": r"mask is 15x12, image is 16x12; export the mask again. Then write its shard again.",
    "unknown class": r"mask holds class index 3, but there are 3 classes \(0..2, 255 is ignored\); write the",
}


def open_samples(folder, encoded=None, **options):
    manifest = write_small_shards(folder, [3, 2], encoded=encoded, **options)
    return Samples(ShardReader(folder, manifest), channels=3, num_classes=NUM_CLASSES), manifest


def train_dataset(folder, encoded=None, on_bad_sample="raise"):
    samples, manifest = open_samples(folder, encoded)
    augmenter = WholeAugmenter(AugmentConfig(), seed=0, class_pixels=manifest.class_pixels, mean=manifest.mean)
    return TrainDataset(samples, augmenter, on_bad_sample=on_bad_sample, blank_size=(12, 16))


def test_load(tmp_path):
    samples, _ = open_samples(tmp_path)
    for sample_id in range(5):
        image, mask = samples.load(sample_id)
        np.testing.assert_array_equal(image, numbered_sample(sample_id)[0])
        np.testing.assert_array_equal(mask, numbered_sample(sample_id)[1])


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_sample_is_handed_over_as_an_error(tmp_path, fault):
    item = train_dataset(tmp_path, {4: BAD[fault]})[MicroBatch([(0, 1), (0, 4)])]
    assert isinstance(item, DataError)
    with pytest.raises(DataError, match=r"000001.tar/scene.1/frame 4: " + MESSAGES[fault]):
        raise item
    assert str(item).endswith("set data.on_bad_sample: blank.")
    copy = pickle.loads(pickle.dumps(item))
    assert (str(copy), copy.source) == (str(item), item.source)


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_sample_left_blank(tmp_path, fault, caplog):
    logging.getLogger("unetdist").propagate = True
    batch = train_dataset(tmp_path, {4: BAD[fault]}, "blank")[MicroBatch([(0, 1), (0, 4)])]
    assert isinstance(batch, Batch)
    assert batch.num_bad == 1
    assert batch.ids.tolist() == [1, 4]
    assert (batch.mask[1] == 255).all()
    assert batch.class_pixels[1].sum() == 0
    np.testing.assert_array_equal(batch.mask[0], numbered_sample(1)[1])
    assert "left blank (epoch 0)" in caplog.text
    assert "scene.1/frame 4" in caplog.text


def test_a_mixed_sample_is_laid_together_of_two_that_are_changed_as_in_their_own_places(tmp_path, monkeypatch):
    samples, manifest = open_samples(tmp_path)
    config = AugmentConfig(
        crop_size=(9, 11), scale_min=0.7, scale_max=1.4, flip_horizontal=0.5, hue=0.1, cutmix=0.4, classmix=0.4
    )
    augmenter = WholeAugmenter(config, seed=0, class_pixels=manifest.class_pixels, mean=manifest.mean)
    dataset = TrainDataset(samples, augmenter, on_bad_sample="raise", blank_size=(9, 11))
    read, read_many = [], ShardReader.read_many
    monkeypatch.setattr(ShardReader, "read_many", lambda reader, ids: read.append(ids) or read_many(reader, ids))
    keys, partners = [(3, 0), (3, 1), (3, 2), (3, 4)], [(3, 1), (3, 0), (3, 3), (4, 2)]
    kinds = set()
    for epoch in range(30):
        request = MicroBatch([(epoch + e, n) for e, n in keys], None, [(epoch + e, n) for e, n in partners])
        batch = dataset[request]
        mixes = augmenter.mixer(request.keys, request.partners)
        assert len(read.pop()) == 4 + (mixes[2] is not None) + (mixes[3] is not None)
        for number, (key, mix) in enumerate(zip(request.keys, mixes, strict=True)):
            image, mask = augmenter(*samples.load(key[1]), epoch=key[0], sample_id=key[1])
            kinds.add(mix and mix.is_cut)
            if mix is not None:
                other_epoch, other = request.partners[number]
                partner = augmenter(*samples.load(other), epoch=other_epoch, sample_id=other)
                is_taken = mix.is_taken(samples.finish(other, *partner)) > 0
                image = np.where(is_taken[..., None], partner[0], image)
                mask = np.where(is_taken, partner[1], mask)
            np.testing.assert_array_equal(batch.image[number].permute(1, 2, 0), image)
            np.testing.assert_array_equal(batch.mask[number], mask)
    assert kinds == {None, True, False}


def test_masks_of_foreign_tars_are_read_through_the_labels(tmp_path):
    """Here ids 7, 8 and 9 are the classes 0, 1 and 2."""
    image, mask = numbered_sample(0)
    ids = np.where(mask == 255, 255, mask + 7).astype(np.uint8)
    manifest = write_small_shards(tmp_path, [1], encoded={0: (encode_png(image), encode_png(ids))})
    names = [(7, "sky", (1, 1, 200)), (8, "tree", (0, 90, 0)), (9, "road", (80, 80, 90))]
    records = [
        {"index": index, "id": number, "name": name, "color": list(color)}
        for index, (number, name, color) in enumerate(names)
    ]
    manifest = replace(manifest, palette_records=tuple(records), mask_format="ids", unknown_colors="error")
    samples = Samples(ShardReader(tmp_path, manifest), channels=3, num_classes=NUM_CLASSES)
    np.testing.assert_array_equal(samples.load(0)[1], mask)


@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_picture_that_says_it_is_huge_is_not_decoded(tmp_path, what):
    """A decompression bomb: a few bytes that would fill the memory."""
    huge = bytearray(encode_mask(MASK) if what == "mask" else encode_png(IMAGE))
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    encoded = (bytes(huge), encode_mask(MASK)) if what == "image" else (encode_png(IMAGE), bytes(huge))
    samples, _ = open_samples(tmp_path, {1: encoded})
    told = {
        "mask": r"frame 1: mask claims to be 60000x60000, larger than any .*16x12 by the manifest",
        "image": r"frame 1: mask is 16x12, image is 60000x60000; export the mask again.",
    }
    with pytest.raises(DataError, match=told[what]):
        samples.load(1)


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_a_crop_that_is_cut_out_of_the_jpeg_has_the_pixels_of_the_whole(tmp_path, sampling):
    rng = np.random.default_rng(3)
    image = cv2.resize(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), (200, 120))
    mask = rng.integers(0, 3, (120, 200), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", subsampling=sampling, restart_marker_blocks=1)
    encoded = {0: (file.getvalue(), encode_mask(mask))}
    manifest = write_small_shards(tmp_path, [1], sizes=[(120, 200)], encoded=encoded)
    samples = Samples(ShardReader(tmp_path, manifest), channels=3, num_classes=NUM_CLASSES)
    config = AugmentConfig(crop_size=(40, 50), flip_horizontal=0.5, scale_min=0.7, scale_max=1.5, quarter_turns=0.5)
    augmenter = WholeAugmenter(config, seed=0, class_pixels=manifest.class_pixels, mean=manifest.mean)
    dataset = TrainDataset(samples, augmenter, on_bad_sample="raise", blank_size=(40, 50))
    header = parse_header(file.getvalue())
    assert decode_part(file.getvalue(), header, 3, Box(10, 20, 50, 70)) is not None
    for epoch in range(20):
        batch = dataset[MicroBatch([(epoch, 0)])]
        whole, mask_crop = augmenter(*samples.load(0), epoch=epoch, sample_id=0)
        np.testing.assert_array_equal(batch.image[0].permute(1, 2, 0), whole)
        np.testing.assert_array_equal(batch.mask[0], mask_crop)


def test_a_fault_of_the_place_is_never_left_blank(tmp_path, monkeypatch):
    """A server that refuses, or a full disk, would make every sample a bad one."""
    dataset = train_dataset(tmp_path, on_bad_sample="blank")

    def refuse(*_):
        raise SourceError("cannot be read; check the address and your permission.", source="s3://bucket/a.tar")

    monkeypatch.setattr(ShardReader, "_open", refuse)
    item = dataset[MicroBatch([(0, 1)])]
    assert str(item) == "s3://bucket/a.tar: cannot be read; check the address and your permission."


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
