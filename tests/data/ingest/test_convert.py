"""One shard's samples: what is stored, what is kept, what is refused."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.ingest.ingested import contents, samples_of, write
from tests.data.ingest.picture_folders import (
    mask_array,
    palette,
    write_folders,
)
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.ingest import convert
from unetdist.data.ingest.convert import ConvertOptions
from unetdist.data.ingest.folder import LayoutOptions
from unetdist.data.ingest.sources import from_folders
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


def test_a_data_set_holds_the_images_bytes_and_the_masks_indices(root, tmp_path):
    account = write(root, tmp_path / "out")
    found = samples_of(tmp_path / "out")
    assert len(found) == 20
    for number in range(20):
        key = f"day{number % 2}/{number:02d}"
        image, mask, record = found[key]
        assert image == (root / "images" / f"{key}.jpg").read_bytes()
        assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(number)])
        names = {"image": f"{key}.jpg", "mask": f"{key}.png"}
        assert record == {"key": key, "height": 12, "width": 16, **names}
    assert f"{tmp_path / 'out'}: 20 samples in 4 shards" in account
    assert "16x12, RGB; bytes as they came" in account


def test_masks_and_images_are_resized_together(root, tmp_path):
    write(root, tmp_path / "out", resize=(8, 6))
    assert Manifest.load(tmp_path / "out").resize == (8, 6)
    image, mask, record = samples_of(tmp_path / "out")["day0/00"]
    assert (record["height"], record["width"]) == decode_mask(mask).shape == (6, 8)
    source = decode_image((root / "images/day0/00.jpg").read_bytes(), 3)
    assert np.array_equal(decode_image(image, 3), cv2.resize(source, (8, 6), interpolation=cv2.INTER_AREA))
    assert np.array_equal(decode_mask(mask), np.array([0, 1, 2, 255], np.uint8)[mask_array(0)][1::2, 1::2])


def test_a_second_run_keeps_every_shard(root, tmp_path, monkeypatch):
    write(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(convert, "_write", lambda job: pytest.fail("written again"))
    assert "4 shards, 4 of them kept from before" in write(root, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("harm", ["tar", "index", "no tar", "no index", "record"])
def test_what_was_damaged_is_written_again(root, tmp_path, harm):
    out = tmp_path / "out"
    write(root, out)
    before = contents(out)
    path = {
        "tar": out / "000001.tar",
        "index": out / "000001.tar.idx",
        "record": out / ".ingest/000001.json",
    }[harm.split()[-1]]
    path.unlink() if harm.startswith("no") else path.write_bytes(path.read_bytes()[:-100])
    write(root, out)
    assert contents(out) == before


def test_a_file_that_may_not_be_read_is_a_bad_sample(root, tmp_path):
    source = from_folders(root / "images", root / "masks")
    (root / "images/day0/00.jpg").unlink()
    with pytest.raises(DataError, match=r"day0/00\.jpg, day0/00\.png: cannot be read: .*No such file"):
        write(root, tmp_path / "out", source)


def test_a_record_of_a_job_changes_with_all_that_decides_its_bytes(root, tmp_path):
    samples = from_folders(root / "images", root / "masks").samples
    job = convert.Job(tmp_path, 0, samples, None, palette(root), ConvertOptions())
    others = [
        replace(job, samples=samples[1:]),
        replace(job, samples=(replace(samples[0], stamp="x"), *samples[1:])),
        replace(job, options=ConvertOptions(image_format="png")),
    ]
    assert len({item.fingerprint for item in [job, *others]}) == 4
    assert replace(job, options=ConvertOptions(skip_bad=True)).fingerprint == job.fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvertOptions(resize=(0, 5)), r"resize \(0x5\) must be at least 1x1"),
        (lambda: ConvertOptions(image_range=(5, 5)), r"image_range \(5 5\) must ascend"),
        (lambda: LayoutOptions(samples_per_shard=0), r"samples_per_shard \(0\) must be 1 or more"),
        (lambda: LayoutOptions(shard_size_mb=0), r"shard_size_mb \(0\) must be over 0"),
    ],
)
def test_options_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
