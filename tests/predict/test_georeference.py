import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from unetdist.predict.georeference import NOWHERE, PIXEL_SCALE, TIEPOINT, georeference_of, tiff_tags

TAGS = {
    PIXEL_SCALE: (12, (0.5, 0.5, 0.0)),
    TIEPOINT: (12, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)),
    34735: (3, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32611)),
    34737: (2, "UTM zone 11N|"),
}


def geotiff(path, tags=TAGS, pixels=None, **more):
    """As GIS programs write it: UTM zone 11 N, half a metre per pixel."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        info.tagtype[tag] = kind
        info[tag] = value
    for tag, value in more.items():
        info[int(tag[1:])] = value
    Image.fromarray(np.zeros((4, 6), np.uint8) if pixels is None else pixels).save(path, tiffinfo=info)
    return path


def place_of(path):
    return georeference_of(path.read_bytes())


def test_the_place_survives_with_its_types(tmp_path):
    place = place_of(geotiff(tmp_path / "a.tif"))
    assert {tag: (kind, value) for tag, kind, value in place} == TAGS
    Image.new("L", (6, 4)).save(tmp_path / "b.tif", tiffinfo=tiff_tags(place, "Road"))
    assert place_of(tmp_path / "b.tif") == place
    with Image.open(tmp_path / "b.tif") as opened:
        assert opened.tag_v2[270] == "Road"


@pytest.mark.parametrize("tags", [{}, {PIXEL_SCALE: TAGS[PIXEL_SCALE]}])
def test_a_tiff_without_a_place_has_none(tmp_path, tags):
    assert place_of(geotiff(tmp_path / "a.tif", tags)) == NOWHERE


def test_a_place_of_pixels_that_are_stored_turned_is_dropped(tmp_path):
    assert place_of(geotiff(tmp_path / "a.tif", _274=6)) == NOWHERE


def test_other_pictures_have_no_place(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    assert place_of(tmp_path / "a.png") == NOWHERE
