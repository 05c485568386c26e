import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from unetdist.data.image_file import ORIENTATION_TAG
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.first_look import decide_exif, find_turned, warn_of_raw_masks
from unetdist.sharding.sources import from_folders


def write_pair(root, name, *, drawn, orientation, size=(12, 12), kind="jpg"):
    """An image of two halves whose mask was drawn on the stored pixels, or on what viewers show."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 3, : size[1] // 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG"}.get(kind, kind.upper()), exif=exif, **options)
    seen = Image.open(file)
    mask = np.asarray((ImageOps.exif_transpose(seen) if drawn == "upright" else seen).convert("L")) > 128
    for folder, suffix in (("images", kind), ("masks", "png")):
        path = root / folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder == "images":
            path.write_bytes(file.getvalue())
        else:
            Image.fromarray(mask.astype(np.uint8)).save(path)


def decided(root, **options):
    return decide_exif(ConvertOptions(**options), from_folders(root / "images", root / "masks")).exif


@pytest.mark.parametrize("drawn", ["raw", "upright"])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_images_that_tell_it_decide_for_the_others(tmp_path, drawn, kind):
    write_pair(tmp_path, "square", drawn=drawn, orientation=6, kind=kind)
    assert decided(tmp_path) is None
    write_pair(tmp_path, "tall", drawn=drawn, orientation=6, size=(12, 16), kind=kind)
    assert decided(tmp_path) == drawn


def test_what_is_given_is_not_overruled(tmp_path):
    write_pair(tmp_path, "square", drawn="raw", orientation=3)
    write_pair(tmp_path, "tall", drawn="raw", orientation=8, size=(12, 16))
    assert decided(tmp_path, exif="upright") == "upright"


def test_images_that_contradict_each_other_decide_nothing(tmp_path):
    write_pair(tmp_path, "square", drawn="raw", orientation=3)
    for drawn in ("raw", "upright"):
        write_pair(tmp_path, drawn, drawn=drawn, orientation=8, size=(12, 16))
    assert decided(tmp_path) is None


def test_a_set_without_doubt_needs_no_decision(tmp_path):
    write_pair(tmp_path, "plain", drawn="raw", orientation=1)
    write_pair(tmp_path, "tall", drawn="upright", orientation=6, size=(12, 16))
    (tmp_path / "images/broken.jpg").write_bytes(b"\xff\xd8Exif\0")
    (tmp_path / "masks/broken.png").write_bytes(b"")
    source = from_folders(tmp_path / "images", tmp_path / "masks")
    assert decided(tmp_path) is None
    assert [each.sample.key for each in find_turned(source.reader, source.samples)] == ["tall"]


@pytest.mark.parametrize("drawn", ["raw", "upright"])
def test_masks_on_stored_pixels_are_told_to_differ_from_what_prediction_sees(tmp_path, caplog, drawn):
    write_pair(tmp_path, "tall", drawn=drawn, orientation=6, size=(12, 16))
    assert decided(tmp_path) is None
    by_size = list(caplog.messages)
    caplog.clear()
    warn_of_raw_masks(drawn)
    assert caplog.messages == by_size
    assert ["predict.py turns such images upright" in told for told in by_size] == [True] * (drawn == "raw")
