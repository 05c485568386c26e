import numpy as np
import pytest
from PIL import Image

from unetdist.data.labels import Palette
from unetdist.data.labels.masks import read_mask
from unetdist.data.shapes import PALETTE, draw, write_shapes
from unetdist.errors import ConfigError


def test_a_picture_depends_on_index_and_seed_alone():
    image, mask = draw(3, seed=1)
    again = draw(3, seed=1)
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert not np.array_equal(image, draw(4, seed=1)[0])
    assert not np.array_equal(image, draw(3, seed=2)[0])
    assert image.shape == (96, 96, 3)
    assert mask.shape == (96, 96)
    assert image.dtype == mask.dtype == np.uint8


def test_any_size():
    image, mask = draw(0, seed=0, size=(40, 65))
    assert image.shape == (40, 65, 3)
    assert mask.shape == (40, 65)


def test_a_size_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"size of the shapes \(8, 96\) must be at least 16; use 96,96"):
        draw(0, seed=0, size=(8, 96))


def test_shapes_are_equally_common_and_their_colour_tells_nothing():
    pictures = [draw(i, seed=0) for i in range(150)]
    share = np.bincount(np.concatenate([mask.ravel() for _, mask in pictures]), minlength=4) / (150 * 96 * 96)
    assert 0.6 < share[0] < 0.85
    assert share[1:].max() < 1.5 * share[1:].min()
    means = [
        np.mean([image[mask == label].mean(0) for image, mask in pictures if (mask == label).any()], axis=0)
        for label in (1, 2, 3)
    ]
    assert np.abs(np.subtract(means, np.mean(means, axis=0))).max() < 20


def test_shapes_stand_out_from_what_is_around_them():
    steps = []
    for image, mask in (draw(index, seed=0) for index in range(20)):
        is_edge = (mask[:, :-5] == 0) & (mask[:, 5:] > 0)
        steps.append(np.linalg.norm(image[:, 5:].astype(float) - image[:, :-5], axis=-1)[is_edge])
    assert np.percentile(np.concatenate(steps), 5) > 50


def test_backgrounds_are_not_flat():
    image, mask = draw(0, seed=0)
    assert image[mask == 0].std(axis=0).min() > 3


def test_files_read_back_as_what_was_drawn(tmp_path):
    write_shapes(tmp_path, count=3, seed=5, size=(48, 64))
    palette = Palette.read(tmp_path / "Labels.txt")
    assert palette == PALETTE
    names = ["00000.png", "00001.png", "00002.png"]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == names
    for index, name in enumerate(names):
        image, mask = draw(index, seed=5, size=(48, 64))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / name)), image)
        reading = read_mask((tmp_path / "masks" / name).read_bytes(), palette)
        read, unknowns = reading.mask, reading.unknowns
        assert unknowns == []
        assert np.array_equal(read, mask)
