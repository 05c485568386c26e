"""Tars that others wrote become a data set; the tars stay as they are."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.ingest.picture_folders import encoded, image_array
from unetdist.data.ingest.foreign import index_folder
from unetdist.data.labels import Label, Palette
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.reader import ShardReader
from unetdist.errors import DataError

PALETTE = Palette((Label(0, "ground", (0, 0, 0), 0), Label(1, "tree", (9, 9, 9), 1)))
MASK = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
IMAGE = encoded(image_array(0, (2, 3)), "JPEG")


def pack(path: Path, keys, mask=MASK, mask_ext="seg.png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for ext, data in (("cls", b"7"), ("jpeg", IMAGE), (mask_ext, encoded(mask))):
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("workers", [1, 2])
def test_foreign_tars_become_a_data_set(tmp_path, workers):
    pack(tmp_path / "b.tar", ["c"])
    pack(tmp_path / "a.tar", ["a", "x/b"])
    before = (tmp_path / "a.tar").read_bytes()
    outcome = index_folder(tmp_path, PALETTE, mask_ext="seg.png", workers=workers)
    assert outcome.problems == ()
    manifest = Manifest.load(tmp_path)
    assert manifest == outcome.manifest
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [("a.tar", 2), ("b.tar", 1)]
    assert manifest.class_pixels == (6, 9)
    assert manifest.ignored_pixels == 3
    assert ShardReader(tmp_path, manifest).read(1) == (IMAGE, encoded(MASK))
    assert ShardReader(tmp_path, manifest).key(1) == "x/b"
    assert (tmp_path / "a.tar").read_bytes() == before


def test_bad_samples_and_tars_are_told_together(tmp_path):
    pack(tmp_path / "a.tar", ["a"], mask=MASK + 1)
    pack(tmp_path / "b.tar", ["b"], mask=MASK[:1])
    pack(tmp_path / "c.tar", ["c"], mask_ext="mask.png")
    pack(tmp_path / "d.tar", ["d"])
    outcome = index_folder(tmp_path, PALETTE, mask_ext="seg.png")
    assert outcome.manifest is None
    assert not (tmp_path / MANIFEST_NAME).exists()
    texts = [f"{problem.kind}: {problem.where}: {problem.detail}" for problem in outcome.problems]
    assert len(texts) == 3
    assert "a.tar, key a: mask holds [2], class indices are 0..1 and 255 (ignored); complete" in texts[0]
    assert "b.tar, key b: image is 3x2, mask is 3x1 (width x height); pack the sample anew" in texts[1]
    assert texts[2].startswith("bad tar")
    assert "key c has no .seg.png" in texts[2]


def test_folders_that_cannot_be_right_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar files here; give the folder"):
        index_folder(tmp_path, PALETTE)
    pack(tmp_path / "a.tar", [])
    with pytest.raises(DataError, match="the tars hold no samples"):
        index_folder(tmp_path, PALETTE)
    gaps = Palette((Label(0, "ground", (0, 0, 0), 0), Label(7, "tree", (9, 9, 9), 1)))
    with pytest.raises(DataError, match="ids of the labels are not 0, 1, 2 .*number the labels so"):
        index_folder(tmp_path, gaps)
    (tmp_path / ".ingest").mkdir()
    with pytest.raises(DataError, match="was written by this program"):
        index_folder(tmp_path, PALETTE)
