"""A manifest comes back as it was, or is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from unetdist.data.manifest import MANIFEST_NAME, Manifest, Shard
from unetdist.errors import DataError
from unetdist.storage.folders import open_folder

MANIFEST = Manifest(
    shards=(Shard("000000.tar", 3, 10240, "ab"), Shard("000001.tar", 2, 5120, "cd")),
    palette_records=({"index": 0, "id": 3, "name": "road", "color": [1, 2, 3]},),
    class_pixels=(5,),
    class_images=(2,),
    presence_pixels=(7,),
    ignored_pixels=1,
    num_samples=5,
    num_pixels=8,
    channels=3,
    mean=(0.25, 1.0, 2.0),
    std=(1.0, 2.0, 3.0),
    min_size=(3, 4),
    max_size=(5, 6),
    sizes=((3, 4, 5),),
    resize=(4, 3),
)


@pytest.mark.parametrize("resize", [None, (4, 3)])
def test_a_manifest_comes_back_as_it_was_saved(tmp_path, resize):
    manifest = dataclasses.replace(MANIFEST, resize=resize)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.shard_sizes.tolist() == [3, 2]
    assert manifest.num_classes == 1


def test_counts_are_named_as_such(tmp_path):
    MANIFEST.save(tmp_path)
    shard = json.loads((tmp_path / MANIFEST_NAME).read_text())["shards"][0]
    names = {"name": "000000.tar", "num_samples": 3, "num_bytes": 10240, "sha256": "ab", "index_sha256": ""}
    assert shard == names


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json here.*unetdist shard"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere", "no such folder.*unetdist shard"),
        ("Labels.txt", "it is a file.*unetdist shard"),
        ("pictures", "it holds pictures.*unetdist shard --images"),
    ],
)
def test_what_is_there_instead_of_a_data_set_is_told(tmp_path, place, told):
    (tmp_path / "Labels.txt").write_text("0 0 0 road")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.JPG").touch()
    with pytest.raises(DataError, match=rf"{place}: no manifest\.json here.*{told}"):
        Manifest.load(tmp_path / place)


def test_the_folder_above_data_sets_names_them(tmp_path):
    for split in ("val", "train"):
        (tmp_path / split).mkdir()
        MANIFEST.save(tmp_path / split)
    with pytest.raises(DataError, match="give one of the data sets in it: [^ ]+/train, [^ ]+/val.$"):
        Manifest.load(tmp_path)


def change_manifest(folder: Path, **changes) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99, this program reads version 2"),
        ({"num_samples": 6}, "damaged.*num_samples is not the sum"),
        ({"colour": 1}, "damaged.*colour"),
        ({"sizes": 3}, "damaged"),
        ({"num_pixels": "8"}, r"damaged \(num_pixels \('8'\) must be an integer"),
        ({"num_pixels": 2**63}, r"damaged \(num_pixels"),
        ({"num_pixels": 7.5}, r"damaged \(num_pixels \(7\.5\)"),
        ({"num_pixels": 9}, r"damaged \(its sha256 is"),
        ({"mean": [1, 2]}, r"damaged \(mean \(a list of 2\) must be a list of 3"),
        ({"std": [1, 2, -3]}, r"damaged \(std .* is negative"),
        ({"channels": 2}, r"damaged \(channels \(2\)"),
        ({"class_pixels": [1, 2]}, r"damaged \(class_pixels has 2 numbers for 1 classes"),
        ({"mask_format": "color"}, r"damaged \(only one of mask_format and unknown_colors is null"),
        ({"palette_records": [{"index": 0, "id": 999, "name": "x", "color": [1, 2, 3]}]}, r"damaged .*id \(999\)"),
        (
            {"shards": [{"name": "a\0b", "num_samples": 5, "num_bytes": 9000, "sha256": "ab"}]},
            r"damaged \(shards\[0\]\.name",
        ),
        (
            {"shards": [{"name": "a", "num_samples": 5, "num_bytes": 9000, "sha256": "../../x"}]},
            r"damaged \(shards\[0\]\.sha256",
        ),
        (
            {"shards": [{"name": "a", "num_samples": 5, "num_bytes": 99, "sha256": "ab"}]},
            r"damaged \(5 samples do not fit into the 99 bytes of a",
        ),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, changes, message):
    MANIFEST.save(tmp_path)
    change_manifest(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"manifest\.json: {message}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged, not JSON"),
        ("[1]", "not a manifest"),
        ("[" * 10**5, "damaged, not JSON .*nested"),
        ('{"version": ' + "9" * 5000 + "}", "damaged, not JSON"),
    ],
)
def test_a_manifest_that_is_damaged_is_refused(tmp_path, text, message):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path)


def test_a_manifest_lies_anywhere(tmp_path):
    url = f"file://{tmp_path}/new"
    MANIFEST.save(url)
    assert (tmp_path / "new" / MANIFEST_NAME).read_text() == json.dumps(
        json.loads((tmp_path / "new" / MANIFEST_NAME).read_text()), indent=1
    ) + "\n"
    assert Manifest.load(url) == Manifest.load(open_folder(url)) == Manifest.load(tmp_path / "new") == MANIFEST
    with pytest.raises(DataError, match=rf"^{url}/x: no manifest\.json here.*unetdist shard"):
        Manifest.load(f"{url}/x")
    (tmp_path / "new" / MANIFEST_NAME).write_text("{")
    with pytest.raises(DataError, match=rf"^{url}/manifest.json: damaged, not JSON"):
        Manifest.load(url)


def test_indexes_lie_beside_the_manifest():
    assert MANIFEST.shards[0].index_name == "000000.tar.idx"
    shard = Shard("https://host/a%20b/c.tar?token=x", 1, 1, "0123456789abcdef")
    assert shard.index_name == "c.tar-0123456789ab.idx"


def test_sizes_of_shards_are_counted_once():
    assert MANIFEST.shard_sizes is MANIFEST.shard_sizes
    with pytest.raises(ValueError, match="read-only"):
        MANIFEST.shard_sizes[0] = 1


def test_a_manifest_of_an_older_version_needs_no_hash(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / MANIFEST_NAME
    values = json.loads(path.read_text())
    del values["sha256_of_this"]
    path.write_text(json.dumps(values))
    assert Manifest.load(tmp_path) == MANIFEST


def test_a_folder_or_a_named_pipe_is_no_manifest(tmp_path):
    (tmp_path / "a" / MANIFEST_NAME).mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / MANIFEST_NAME)
    for folder in ("a", "b"):
        with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
            Manifest.load(tmp_path / folder)
