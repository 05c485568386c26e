import numpy as np
import pytest

from tests.synthetic import PALETTE_RECORDS, draw, write_shards
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order
from unetdist.data.reader import ShardReader
from unetdist.errors import ConfigError, DataError
from unetdist.sharding import show

PALETTE = Palette.from_records(PALETTE_RECORDS)


@pytest.fixture
def reader(tmp_path):
    write_shards(tmp_path, 12, sizes=((24, 32), (48, 20)))
    return ShardReader(tmp_path, Manifest.load(tmp_path))


def test_the_choice_is_what_a_training_sees_first(reader):
    ids = show.choose(reader, 5, seed=3)
    assert ids == Order([5, 5, 2], seed=3).locate(np.arange(5)).sample_id.tolist()
    assert ids == show.choose(reader, 5, seed=3) != show.choose(reader, 5, seed=4)
    assert sorted(show.choose(reader, 100, seed=0)) == list(range(12))
    with pytest.raises(ConfigError, match=r"--num \(0\) must be 1 or more; use 16"):
        show.choose(reader, 0, seed=0)


def test_samples_by_key(reader):
    assert show.find(reader, ["pictures/007", "pictures/001", "pictures/007"]) == [7, 1, 7]
    with pytest.raises(DataError, match=r"no sample has the key a, b; keys look like pictures/000\."):
        show.find(reader, ["pictures/001", "b", "a"])


def test_samples_are_shown_as_they_are(reader):
    (shown,) = show.load(reader, [4])
    image, mask = draw(4, (24, 32))
    np.testing.assert_array_equal(shown.image, image)
    np.testing.assert_array_equal(shown.mask, mask)
    assert shown.key == "pictures/004"


@pytest.mark.parametrize("num", [1, 2, 5, 12])
def test_the_sheet_has_every_sample_and_one_legend(reader, num):
    shown = show.load(reader, range(num))
    sheet = show.draw(shown, PALETTE)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] <= show.SHEET_PX
    for item in shown:
        factor = show.CELL_PX // max(item.mask.shape)
        large = item.image.repeat(factor, axis=0).repeat(factor, axis=1)
        assert contains(sheet, large), f"{item.key} is on the sheet as it is"
    assert np.array_equal(sheet, show.draw(shown, PALETTE))


def contains(sheet, picture):
    """Whether the picture is a part of the sheet."""
    height, width = picture.shape[:2]
    tops, lefts = np.nonzero((sheet == picture[0, 0]).all(axis=2))
    return any(
        np.array_equal(sheet[top : top + height, left : left + width], picture)
        for top, left in zip(tops, lefts, strict=True)
    )


def test_large_pictures_of_any_shape_and_channels_fit():
    wide = np.zeros((10, 5000, 1), np.uint8), np.full((10, 5000), 255, np.uint8)
    tall = np.zeros((3000, 7, 4), np.uint8), np.zeros((3000, 7), np.uint8)
    sheet = show.draw([show.SheetSample(*wide, "wide"), show.SheetSample(*tall, "a" * 300)], PALETTE)
    assert sheet.shape[1] <= show.SHEET_PX
