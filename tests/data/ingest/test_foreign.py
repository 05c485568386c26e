"""Tars that others wrote become a data set; the tars stay as they are."""

import errno
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.ingest.picture_folders import encoded, image_array
from unetdist.data.ingest import foreign, report
from unetdist.data.ingest.foreign import index_folder
from unetdist.data.ingest.sources import Problem
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
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [("a.tar", 2), ("b.tar", 1)]
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


@pytest.mark.parametrize("place", [(foreign, "save_index"), (Manifest, "save")], ids=["index", "manifest"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "the disk is full: no manifest is written; free some space and run the same command again",
        ),
        (
            errno.EROFS,
            r"cannot be written \(.*Read-only.*\): no manifest is written; mend that and run the same",
        ),
    ],
)
def test_a_folder_that_takes_no_files_is_told(tmp_path, monkeypatch, place, number, message):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    pack(tmp_path / "a.tar", ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(*place, refuse)
        with pytest.raises(DataError, match=message):
            index_folder(tmp_path, PALETTE, mask_ext="seg.png")
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert index_folder(tmp_path, PALETTE, mask_ext="seg.png").manifest


def test_a_tar_that_cannot_be_read_is_one_of_the_problems(tmp_path):
    pack(tmp_path / "a.tar", ["a"])
    (tmp_path / "b.tar").symlink_to("nowhere")
    outcome = index_folder(tmp_path, PALETTE, mask_ext="seg.png")
    assert outcome.manifest is None
    assert [problem.where for problem in outcome.problems] == [str(tmp_path / "b.tar")]
    assert outcome.problems[0].detail.startswith("cannot be read: ")


def test_many_problems_are_told_where_their_list_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    problems = [Problem("bad tar", f"{number}.tar", "x") for number in range(30)]
    text = report.describe_problems(problems, (), tmp_path / "file")
    assert "... and 10 more" in text
    assert f"The whole list cannot be written to {tmp_path / 'file' / report.PROBLEMS_NAME} (" in text
