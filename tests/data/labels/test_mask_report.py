"""Notes on masks, faults and remedies; whole commands are in `tests/faults/test_labels.py`."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from tests.shared_data import camvid, isbi
from unetdist.data.labels import Label, Palette
from unetdist.data.labels.census import Census
from unetdist.data.labels.mask_report import MaskNotes, black_and_white, closest, count_thin, remedy, resampled
from unetdist.data.labels.masks import UnknownColor, read_mask

IDS = Palette(tuple(Label(n, f"c{n}", (n, 9, 0), n) for n in range(5)), has_ids=False)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def notes_of(*masks: np.ndarray, palette: Palette = IDS) -> MaskNotes:
    notes = MaskNotes()
    for number, mask in enumerate(masks):
        notes.add(f"{number}.png", read_mask(png(mask), palette), palette)
    return notes


STRIPES = np.repeat([[0, 1, 3, 2, 4, 0, 1, 1, 1, 1, 1]], 8, axis=0).astype(np.uint8)


def test_a_pixel_between_less_and_more_is_thin_where_its_class_has_areas_too():
    assert count_thin(STRIPES) == (2 * 1, 2 * 6)  # 0 1 3, on two of the eight rows
    assert count_thin(STRIPES[:, :8]) == (0, 2 * 6)
    assert count_thin(np.array([[0, 1, 255, 0]] * 4, np.uint8))[0] == 0  # the ignored is neither less nor more


def test_sums_do_not_depend_on_the_order_and_survive_a_record():
    transparent = np.dstack([np.full((4, 4), 2, np.uint8), np.zeros((4, 4), np.uint8)])
    parts = [notes_of(STRIPES), notes_of(transparent), notes_of(np.full((4, 4), 255, np.uint8))]
    together, backwards = MaskNotes(), MaskNotes()
    for part, other in zip(parts, parts[::-1], strict=True):
        together.merge(part)
        backwards.merge(other)
    assert together == backwards
    assert MaskNotes(**json.loads(json.dumps(asdict(together)))) == together
    assert (together.num_masks, together.num_ids, together.num_255) == (3, 3, 1)
    assert together.classes == [0, 1, 2, 3, 4]
    assert together.transparent_pixels == 16


def test_without_masks_there_are_no_notes():
    assert MaskNotes().describe(IDS) == []


def real_masks():
    palette = Palette.read(camvid() / "Labels.txt")
    files = sorted(camvid().glob("*/masks/*.png"))[::40]
    street = [read_mask(file.read_bytes(), palette).mask for file in files]
    yield street
    yield [np.random.default_rng(1).permutation(12).astype(np.uint8)[mask] for mask in street]
    yield [np.ascontiguousarray(mask[::4, ::4]) for mask in street]
    yield [read_mask(f.read_bytes(), Palette.read(isbi() / "Labels.txt")).mask for f in (isbi() / "masks").iterdir()]
    yield []


def test_no_real_mask_is_taken_for_a_resized_one():
    for masks in real_masks():
        notes = MaskNotes()
        for mask in masks:
            thin, edges = count_thin(mask)
            notes.merge(MaskNotes(num_thin=thin, num_edges=edges))
        assert resampled(notes, "auto") is None
        assert notes.num_thin <= 0.05 * notes.num_edges


@pytest.mark.parametrize("scale", [0.5, 0.93, 2])
def test_real_masks_resized_smoothly_are_found(scale):
    notes = MaskNotes()
    for mask in next(real_masks())[:3]:
        size = int(mask.shape[1] * scale), int(mask.shape[0] * scale)
        smooth = Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)
        thin, edges = count_thin(np.asarray(smooth))
        notes.merge(MaskNotes(num_thin=thin, num_edges=edges))
    assert "third class" in resampled(notes, "auto")


RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def palette(*colors, has_ids=False):
    labels = [Label(n, f"c{n}", color, n) for n, color in enumerate(colors)]
    return Palette(tuple(labels), has_ids=has_ids)


@pytest.mark.parametrize(
    ("colors", "black", "white"),
    [
        ((BLACK, RED), "c0", "c1"),
        ((RED, BLACK), "c1", "c0"),
        ((WHITE, RED), "c1", "c0"),
        ((RED, WHITE), "c0", "c1"),
        ((RED, (0, 9, 0)), "c1", "c0"),
        ((RED,), "background", "c0"),
        ((BLACK, RED, (0, 9, 0)), "c0", "NAME"),
    ],
)
def test_black_and_white_get_the_names_that_the_colours_say(colors, black, white):
    notes = MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[0])
    text = black_and_white(palette(*colors), notes)
    assert f"\n  0 0 0 {black}\n  255 255 255 {white}\n" in text


@pytest.mark.parametrize(
    "notes",
    [
        MaskNotes(num_masks=9, num_ids=9, classes=[0]),
        MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[0, 1]),
        MaskNotes(num_masks=9, num_ids=9, num_255=9, classes=[1]),
    ],
)
def test_255_is_ignored_beside_other_classes(notes):
    assert black_and_white(palette(BLACK, RED), notes) is None


def test_the_closest_colours_are_those_of_two_labels():
    assert closest(palette(BLACK, RED, (250, 0, 0))) == (5, "c1", "c2")


def census_of(*colors):
    census = Census()
    census.add("a.png", [UnknownColor(color, 50, (0, 0), "c0", 99.0) for color in colors])
    return census


def test_the_line_of_a_class_without_pixels_has_an_id_where_the_others_have():
    notes = MaskNotes(num_masks=1, num_pixels=100, classes=[0])
    assert "'9 8 7 c1'" in remedy(census_of((9, 8, 7)), palette(BLACK, RED), notes)
    assert "'1 9 8 7 c1'" in remedy(census_of((9, 8, 7)), palette(BLACK, RED, has_ids=True), notes)
    assert remedy(census_of((9, 8, 7), (1, 1, 1)), palette(BLACK, RED), notes) is None
    everything = MaskNotes(num_masks=1, num_pixels=100, classes=[0, 1])
    assert remedy(census_of((9, 8, 7)), palette(BLACK, RED), everything) is None
    assert remedy(census_of(7), palette(BLACK, RED, (0, 9, 0)), notes) is None
