import dataclasses
import json

import pytest

from tests.synthetic import write_shards
from unetdist.sharding.describe import describe_manifest, summarize
from unetdist.storage.folders import open_folder


@pytest.fixture
def manifest(tmp_path):
    """Twelve samples in shards of five, five and two."""
    return write_shards(tmp_path, 12, sizes=((24, 32), (24, 32), (40, 20)))


def test_the_numbers_are_those_of_the_manifest(manifest):
    numbers = json.loads(json.dumps(summarize(manifest)))
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


def test_the_text_has_classes_sizes_and_shards(manifest):
    text = describe_manifest(manifest, open_folder("shards/train"))
    assert "shards/train: 12 samples in 3 shards, 0.1 MB" in text
    (tree,) = [line for line in text.splitlines() if "tree" in line]
    assert f"{100 * manifest.class_pixels[2] / manifest.num_pixels:.2f} %       4" in tree
    assert "ignored" in text
    assert f"20x24 to 32x40, RGB; mean {manifest.mean[0]:.1f} " in text


def test_a_class_that_does_not_occur_is_said(manifest):
    changed = dataclasses.replace(
        manifest, class_pixels=(9, 9, 0), class_images=(3, 3, 0), presence_pixels=(90, 90, 0), sizes=((24, 32, 5),)
    )
    assert summarize(changed)["classes"][2]["share_where_present"] is None
    (tree,) = [line for line in describe_manifest(changed, open_folder("x")).splitlines() if "tree" in line]
    assert "does not occur" in tree
