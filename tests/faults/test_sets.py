"""Sets of files as people have them: images turned by EXIF, links, copies, names and label files of every kind."""

import numpy as np
import pytest

from tests.data.ingest.test_exif import write_pair
from tests.launch.test_shard_dataset import run
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples
from unetdist.errors import DataError

LABELS = "0 0 0 background\n255 0 0 thing\n"


def shard(root, *options, out="out"):
    """Run the command on root/images and root/masks."""
    labels = root / "Labels.txt"
    if not labels.exists():
        labels.write_text(LABELS)
    folders = ["--images", root / "images", "--masks", root / "masks"]
    run(*folders, "--labels", labels, "--out", root / out, "--workers", 1, *options)


def loaded(folder):
    """Image and mask of each sample of a folder of shards, by key."""
    manifest = Manifest.load(folder)
    reader = ShardReader(folder, manifest)
    samples = Samples(reader, channels=3, num_classes=manifest.num_classes)
    return {reader.key(number): samples.load(number) for number in range(manifest.num_samples)}


def fits(image, mask):
    """Whether the white part of the image is where the mask says so, but for what JPEG blurs."""
    return np.mean((image[..., 0] > 128) == (mask == 1)) > 0.95


@pytest.mark.parametrize("drawn", ["raw", "upright"])
def test_no_image_is_turned_against_its_mask(tmp_path, drawn):
    for orientation in range(1, 9):
        write_pair(tmp_path, f"square{orientation}", drawn=drawn, orientation=orientation)
    for orientation in (2, 3, 4):
        write_pair(tmp_path, f"wide{orientation}", drawn=drawn, orientation=orientation, size=(12, 16))
    with pytest.raises(
        DataError, match=r"(?s)10 problems.*EXIF orientation.*--exif raw or --exif upright"
    ) as caught:
        shard(tmp_path)
    assert "square1" not in str(caught.value)
    shard(tmp_path, "--exif", drawn)
    assert all(fits(*pair) for pair in loaded(tmp_path / "out").values())
    assert len(loaded(tmp_path / "out")) == 11

    write_pair(tmp_path, "tells_it", drawn=drawn, orientation=6, size=(12, 16))
    shard(tmp_path, out="decided")
    assert len(loaded(tmp_path / "decided")) == 12
    assert all(fits(*pair) for pair in loaded(tmp_path / "decided").values())


def test_processes_decide_alike(tmp_path):
    for number in range(6):
        write_pair(tmp_path, f"square{number}", drawn="raw", orientation=3)
    write_pair(tmp_path, "tells_it", drawn="raw", orientation=6, size=(12, 16))
    shard(tmp_path, "--samples-per-shard", 2)
    for rank in range(3):
        shard(tmp_path, "--samples-per-shard", 2, "--rank", rank, "--world-size", 3, out="shared")
    tars = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert len(tars) == 4
    for name in [*tars, "manifest.json"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
