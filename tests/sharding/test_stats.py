import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from tests.synthetic import PALETTE_RECORDS, write_shards
from unetdist.sharding import stats


@pytest.fixture
def manifest(tmp_path):
    """Twelve samples in shards of five, five and two."""
    return write_shards(tmp_path, 12, sizes=((24, 32), (24, 32), (40, 20)))


def printed(manifest):
    file = io.StringIO()
    Console(file=file, width=100).print(stats.tables(manifest, "shards/train"))
    return file.getvalue()


def test_the_numbers_are_those_of_the_manifest(manifest):
    numbers = json.loads(json.dumps(stats.summarize(manifest)))
    assert [row["name"] for row in numbers["classes"]] == ["sky", "road", "tree"]
    shares = [row["pixels_share"] for row in numbers["classes"]]
    assert sum(shares) + numbers["ignored_share"] == pytest.approx(1)
    tree = numbers["classes"][2]
    assert tree["images"] == manifest.class_images[2] == 4
    assert tree["images_share"] == pytest.approx(4 / 12)
    assert tree["share_where_present"] == manifest.class_pixels[2] / manifest.presence_pixels[2]
    assert numbers["sizes"] == [{"size": [24, 32], "images": 8}, {"size": [40, 20], "images": 4}]
    shards = numbers["shards"]
    assert (shards["num"], shards["samples"]) == (3, {"min": 2.0, "median": 5.0, "max": 5.0})
    assert shards["bytes"]["total"] == sum(shard.num_bytes for shard in manifest.shards)


def test_the_tables_tell_classes_sizes_and_shards(manifest):
    text = printed(manifest)
    assert "shards/train: 12 samples in 3 shards, 0.1 MB" in text
    assert "shards: 2 / 5 / 5 samples" in text
    (tree,) = [line for line in text.splitlines() if "tree" in line]
    assert f"{100 * manifest.class_pixels[2] / manifest.num_pixels:.2f}" in tree
    assert "33.3" in tree
    assert "ignored" in text
    assert "32x24" in text
    assert "RGB, mean " in text


def test_a_class_that_does_not_occur_and_sizes_beyond_the_list(manifest):
    changed = dataclasses.replace(
        manifest, class_pixels=(9, 9, 0), class_images=(3, 3, 0), presence_pixels=(90, 90, 0), sizes=((24, 32, 5),)
    )
    assert stats.summarize(changed)["classes"][2]["share_where_present"] is None
    text = printed(changed)
    (other,) = [line for line in text.splitlines() if "other sizes" in line]
    assert "7" in other
    assert stats.draw(changed, "x").ndim == 3


def test_names_are_no_markup(manifest):
    records = ({**PALETTE_RECORDS[0], "name": "[red]sky[/red]"}, *PALETTE_RECORDS[1:])
    assert "[red]sky[/red]" in printed(dataclasses.replace(manifest, palette_records=records))


def test_the_picture_has_a_bar_in_the_colour_of_each_class(manifest):
    picture = stats.draw(manifest, "shards/train")
    assert picture.dtype == np.uint8
    for record, pixels in zip(PALETTE_RECORDS[1:], manifest.class_pixels[1:], strict=False):
        length = (picture == record["color"]).all(axis=2).sum(axis=1).max()
        share = pixels / max(manifest.class_pixels)
        assert length == pytest.approx(share * 420, abs=3), "as long as the pixels are many, but for the frame"
