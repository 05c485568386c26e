import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from unetdist.data.labels import Palette
from unetdist.errors import DataError
from unetdist.predict.image import LoadedImage, Prediction, georeference_of
from unetdist.predict.outputs import Outputs

PALETTE = Palette.from_records(
    [
        {"index": 0, "id": 3, "name": "dark", "color": [10, 10, 90]},
        {"index": 1, "id": 200, "name": "bright", "color": [250, 250, 0]},
    ]
)
ALL = Outputs(color=True, overlay=True, probabilities=True)
CLASSES = np.eye(4, 6, dtype=np.uint8)
PREDICTION = Prediction(CLASSES, np.stack([200 - 100 * CLASSES, 55 + 100 * CLASSES]))
PICTURE = LoadedImage(np.zeros((4, 6, 3), np.uint8))


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_output_on_request(tmp_path):
    ALL.write(tmp_path / "a", PICTURE, PREDICTION, PALETTE)
    assert names(tmp_path) == ["a_color.png", "a_ids.png", "a_overlay.png", "a_probabilities.tif"]
    assert np.array_equal(pixels(tmp_path / "a_ids.png"), np.where(CLASSES, 200, 3))
    assert np.array_equal(pixels(tmp_path / "a_color.png"), PALETTE.colors[CLASSES])


def test_probabilities_are_a_page_per_class_with_its_name(tmp_path):
    ALL.write(tmp_path / "a", PICTURE, PREDICTION, PALETTE)
    with Image.open(tmp_path / "a_probabilities.tif") as opened:
        assert opened.n_frames == 2
        for page, name in enumerate(PALETTE.class_names):
            opened.seek(page)
            assert opened.tag_v2[270] == name
            assert np.array_equal(np.asarray(opened), PREDICTION.probabilities[page])


def test_the_results_of_a_geotiff_lie_where_it_lies(tmp_path):
    place = place_of(geotiff(tmp_path / "in.tif"))
    ALL.write(tmp_path / "out/a", PICTURE._replace(georeference=place), PREDICTION, PALETTE)
    assert names(tmp_path / "out") == ["a_color.tif", "a_ids.tif", "a_overlay.png", "a_probabilities.tif"]
    for name in ("color", "ids", "probabilities"):
        assert place_of(tmp_path / f"out/a_{name}.tif") == place
    with Image.open(tmp_path / "out/a_probabilities.tif") as opened:
        assert opened.tag_v2[270] == "dark"
    assert np.array_equal(pixels(tmp_path / "out/a_ids.tif"), np.where(CLASSES, 200, 3))
    assert ALL.are_there(tmp_path / "out/a")


def test_all_requested_files_must_be_there(tmp_path):
    Outputs().write(tmp_path / "a.b", PICTURE, PREDICTION, PALETTE)
    assert Outputs().are_there(tmp_path / "a.b")
    assert not Outputs(color=True).are_there(tmp_path / "a.b")
    assert not Outputs().are_there(tmp_path / "a")


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="a_probabilities.tif: cannot be written .*; make room or give --out"):
        Outputs().write(tmp_path / "out/a", PICTURE, PREDICTION, PALETTE)


TAGS = {
    33550: (12, (0.5, 0.5, 0.0)),
    33922: (12, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0)),
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


def test_the_place_is_read_with_its_types(tmp_path):
    place = place_of(geotiff(tmp_path / "a.tif"))
    assert {tag: (kind, value) for tag, kind, value in place} == TAGS


@pytest.mark.parametrize("tags", [{}, {33550: TAGS[33550]}])
def test_a_tiff_without_a_place_has_none(tmp_path, tags):
    assert place_of(geotiff(tmp_path / "a.tif", tags)) == ()


def test_a_place_of_pixels_that_are_stored_turned_is_dropped(tmp_path):
    assert place_of(geotiff(tmp_path / "a.tif", _274=6)) == ()


def test_other_pictures_have_no_place(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    assert place_of(tmp_path / "a.png") == ()
