import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.source import Case, Pictures, write_pictures
from unetdist.data.labels import Palette
from unetdist.data.shapes import PALETTE, write_shapes
from unetdist.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    """Three JPEGs of 48x36 with colour masks."""
    write_shapes(tmp_path, count=3, seed=0, size=(36, 48))
    for path in (tmp_path / "images").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    return tmp_path


def pictures(folder):
    return Pictures(folder / "images", folder / "masks", folder / "Labels.txt")


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_pictures_of_the_right_size_are_kept_byte_by_byte(folder, tmp_path):
    write_pictures(tmp_path / "out", pictures(folder), Case(48, 36, 32), num_samples=7)
    files = sorted((tmp_path / "out" / "images").iterdir())
    originals = sorted((folder / "images").iterdir())
    assert len(files) == len(list((tmp_path / "out" / "masks").iterdir())) == 7
    for number, file in enumerate(files):
        assert file.read_bytes() == originals[number % 3].read_bytes()


def test_masks_hold_class_indices(folder, tmp_path):
    write_pictures(tmp_path / "out", pictures(folder), Case(48, 36, 32), num_samples=3)
    mask = opened(tmp_path / "out" / "masks" / "000001.png")
    color = opened(folder / "masks" / "00001.png")
    assert mask.mode == "L"
    assert (PALETTE.colorize(np.array(mask)) == np.array(color)).all()
    labels = Palette.read(tmp_path / "out" / "Labels.txt")
    assert labels.class_names == PALETTE.class_names
    assert [label.id for label in labels.labels] == [0, 1, 2, 3]


def test_other_sizes_are_scaled_to_cover_and_cut(folder, tmp_path):
    write_pictures(tmp_path / "out", pictures(folder), Case(96, 48, 32), num_samples=1)
    image = opened(tmp_path / "out" / "images" / "000000.jpg")
    mask = opened(tmp_path / "out" / "masks" / "000000.png")
    assert image.size == mask.size == (96, 48)
    whole = opened(folder / "masks" / "00000.png").resize((96, 72), Image.Resampling.NEAREST)
    assert (PALETTE.colorize(np.array(mask)) == np.array(whole)[12:60]).all()
    assert image.layer[0][1:3] == (2, 2)  # 4:2:0


def test_shapes_are_drawn_at_the_size_of_the_case(tmp_path):
    write_pictures(tmp_path, Pictures(None, None, None), Case(64, 40, 32), num_samples=2)
    assert opened(tmp_path / "images" / "000001.jpg").size == (64, 40)


def test_a_second_run_keeps_what_is_there_and_refuses_other_pictures(tmp_path):
    shapes = Pictures(None, None, None)
    write_pictures(tmp_path, shapes, Case(64, 40, 32), num_samples=1)
    before = (tmp_path / "images" / "000000.jpg").stat().st_mtime_ns
    write_pictures(tmp_path, shapes, Case(64, 40, 32), num_samples=1)
    assert (tmp_path / "images" / "000000.jpg").stat().st_mtime_ns == before
    with pytest.raises(
        ConfigError, match=r"--work: .* holds other pictures; give another folder, or remove it"
    ):
        write_pictures(tmp_path, shapes, Case(64, 40, 32), num_samples=2)


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "images" / "00001.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"00001\.jpg: cannot be read .* replace the file"):
        pictures(folder).read(1, Case(48, 36, 32))


def test_folders_come_all_or_not_at_all(folder):
    with pytest.raises(
        ConfigError, match=r"--images, --masks and --labels go together; give all three, or none"
    ):
        Pictures(folder / "images", None, None)


def test_a_crop_must_fit():
    with pytest.raises(ConfigError, match=r"the crop 64 must fit in 96x48; use 480x360:256"):
        Case(96, 48, 64)
