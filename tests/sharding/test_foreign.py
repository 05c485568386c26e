"""ForeignTars that others wrote become a data set; the tars stay as they are."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.labels import Label, Palette
from unetdist.data.labels.mask_reader import MaskReader
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.shards import load_index
from unetdist.data.tar_index import MemberNames
from unetdist.errors import DataError
from unetdist.sharding import describe as report
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.foreign_tars import IndexJob, find_tars
from unetdist.sharding.plan import WorkPartition
from unetdist.sharding.sources import Problem
from unetdist.sharding.writer import RunOptions, index_tars
from unetdist.storage.folders import open_folder

PALETTE = Palette((Label(0, "ground", (0, 0, 0), 0), Label(1, "tree", (9, 0, 9), 1)))
MASK = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
IMAGE = encoded(image_array(0, (2, 3)), "JPEG")
SEG = MemberNames("{stem}.seg.png")


def pack(path: Path, keys, mask=MASK, mask_ext="seg.png", image=IMAGE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for ext, data in (("cls", b"7"), ("jpeg", image), (mask_ext, encoded(mask))):
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def index(location, palette=PALETTE, names=SEG, out=None, workers=1, **options) -> str | None:
    run = RunOptions(workers=workers, partition=options.pop("partition", WorkPartition()))
    tars = find_tars(str(location), out and str(out))
    convert = ConvertOptions(**options)
    return index_tars(tars, names, palette, convert=convert, options=run)


@pytest.mark.parametrize("workers", [1, 2])
def test_foreign_tars_become_a_data_set(tmp_path, workers):
    pack(tmp_path / "b.tar", ["c"])
    pack(tmp_path / "a.tar", ["a", "x/b"])
    before = (tmp_path / "a.tar").read_bytes()
    account = index(tmp_path, workers=workers)
    manifest = Manifest.load(tmp_path)
    assert f"{tmp_path}: 3 samples in 2 shards" in account
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [("a.tar", 2), ("b.tar", 1)]
    assert manifest.class_pixels == (6, 9)
    assert manifest.ignored_pixels == 3
    assert (manifest.mask_format, manifest.unknown_colors) == (None, None)
    assert ShardReader(tmp_path, manifest).read(1) == (IMAGE, encoded(MASK))
    assert ShardReader(tmp_path, manifest).key(1) == "x/b"
    assert (tmp_path / "a.tar").read_bytes() == before


def test_masks_that_are_no_indices_are_read_through_the_labels(tmp_path):
    colors = np.array([[0, 0, 0], [9, 0, 9]], np.uint8)[[[0, 1, 1]]]
    pack(tmp_path / "a.tar", ["a"], mask=np.repeat(colors, 2, axis=0))
    index(tmp_path)
    manifest = Manifest.load(tmp_path)
    assert (manifest.mask_format, manifest.unknown_colors) == ("auto", "error")
    assert manifest.class_pixels == (2, 4)
    reader = MaskReader(Palette.from_records(manifest.palette_records), "auto", "error")
    assert reader(ShardReader(tmp_path, manifest).read(0)[1]).tolist() == [[0, 1, 1], [0, 1, 1]]


def test_ids_with_gaps_are_read_through_the_labels(tmp_path):
    gaps = Palette((Label(0, "ground", (0, 1, 0), 0), Label(7, "tree", (9, 9, 9), 1)))
    pack(tmp_path / "a.tar", ["a"], mask=MASK)
    pack(tmp_path / "b.tar", ["b"], mask=np.where(MASK == 1, 7, MASK).astype(np.uint8))
    with pytest.raises(DataError, match=r"1 problem in 2 tars, no manifest is written\.\n"):
        index(tmp_path, gaps)
    account = index(tmp_path, gaps, unknown_colors="ignore")
    manifest = Manifest.load(tmp_path)
    assert (manifest.mask_format, manifest.unknown_colors) == ("auto", "ignore")
    assert manifest.class_pixels == (4, 3)
    assert "1" in account


def test_index_and_manifest_go_elsewhere_where_asked(tmp_path):
    pack(tmp_path / "x" / "a.tar", ["a"])
    pack(tmp_path / "y" / "a.tar", ["b"])
    (tmp_path / "list.txt").write_text("# two\nx/a.tar\n\ny/a.tar\n")
    index(tmp_path / "list.txt", out=tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert [shard.name for shard in manifest.shards] == [
        str(tmp_path / "x" / "a.tar"),
        str(tmp_path / "y" / "a.tar"),
    ]
    assert all((tmp_path / "out" / shard.index_name).is_file() for shard in manifest.shards)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a.tar"]


def test_a_finished_tar_is_not_indexed_again_unless_it_changed(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", ["a"])
    pack(tmp_path / "b.tar", ["b"], mask=MASK + 1)
    with pytest.raises(DataError, match="1 problem in 2 tars"):
        index(tmp_path)
    made = []
    make = IndexJob.make
    monkeypatch.setattr(IndexJob, "make", lambda job: made.append(job.name) or make(job))
    pack(tmp_path / "b.tar", ["b"])
    assert "1 of them kept from before" in index(tmp_path)
    assert made == ["b.tar"]
    pack(tmp_path / "a.tar", ["a", "c"])
    (tmp_path / "b.tar.idx").unlink()
    index(tmp_path)
    assert sorted(made) == ["a.tar", "b.tar", "b.tar"]
    assert Manifest.load(tmp_path).num_samples == 3
    (tmp_path / "a.tar").unlink()
    index(tmp_path)
    assert Manifest.load(tmp_path).num_samples == len(load_index(tmp_path / "b.tar")) == 1


def test_no_manifest_stands_over_indexes_of_another_choice(tmp_path, monkeypatch):
    for name in ("a.tar", "b.tar"):
        pack(tmp_path / name, ["a"])
    index(tmp_path)
    plan = json.loads((tmp_path / ".ingest" / "plan.json").read_text())
    assert (plan["mask_format"], plan["names"]["mask"], len(plan["labels"])) == ("auto", "{stem}.seg.png", 2)
    with monkeypatch.context() as patch:
        patch.setattr(IndexJob, "make", lambda job: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            index(tmp_path, mask_format="ids")
    assert not (tmp_path / MANIFEST_NAME).exists()
    index(tmp_path)
    pack(tmp_path / "b.tar", ["b"], mask=MASK + 1)  # the same plan
    with pytest.raises(DataError, match="1 problem in 2 tars, no manifest is written"):
        index(tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_bad_samples_and_tars_are_told_together(tmp_path):
    pack(tmp_path / "a.tar", ["a"], mask=MASK + 1)
    pack(tmp_path / "b.tar", ["b"], mask=MASK[:1])
    pack(tmp_path / "c.tar", ["c"], mask_ext="mask.png")
    pack(tmp_path / "d.tar", ["d"])
    with pytest.raises(DataError) as caught:
        index(tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()
    text = str(caught.value)
    assert "3 problems in 4 tars, no manifest is written." in text
    assert (
        f"not in the label file: 2 at x 2, y 0 in {tmp_path}/a.tar, key a" in text or "a.tar, key a" in text
    )
    assert "b.tar, key b: image is 3x2, mask is 3x1 (width x height); pack the sample again" in text
    assert f"bad tar (1)\n  {tmp_path}/c.tar: key c has no mask c.seg.png" in text


def test_folders_that_cannot_be_right_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar files here; give the folder"):
        index(tmp_path)
    pack(tmp_path / "a.tar", [])
    with pytest.raises(DataError, match="the tars hold no samples"):
        index(tmp_path)
    (tmp_path / ".ingest" / "plan.json").write_text("{}")
    with pytest.raises(
        DataError, match="contains index and manifest of shards that this program wrote; give"
    ):
        index(tmp_path)


@pytest.mark.parametrize("place", [(".tar.idx"), (MANIFEST_NAME)], ids=["index", "manifest"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            "the disk is full: . of 1 shards are complete; free some space and run the same command",
        ),
        (errno.EROFS, r"cannot be written \(.*Read-only.*\): . of 1 .*fix that, or give --out DIR, and run"),
    ],
)
def test_a_folder_that_takes_no_files_is_told(tmp_path, monkeypatch, place, number, message):
    write = type(open_folder(tmp_path)).write

    def refuse(self, name, data):
        if name.endswith(place):
            raise OSError(number, os.strerror(number))
        write(self, name, data)

    pack(tmp_path / "a.tar", ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(type(open_folder(tmp_path)), "write", refuse)
        with pytest.raises(DataError, match=message):
            index(tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert index(tmp_path)


def test_a_tar_that_cannot_be_read_is_one_of_the_problems(tmp_path):
    pack(tmp_path / "a.tar", ["a"])
    (tmp_path / "b.tar").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"bad tar \(1\)\n  .*/b\.tar: cannot be read: "):
        index(tmp_path)


def test_a_picture_that_unfolds_to_too_much_is_refused_by_its_header(tmp_path, recwarn):
    pack(tmp_path / "a.tar", ["a"], image=encoded(np.zeros((20_000, 9_000), np.uint8)))
    with pytest.raises(
        DataError, match=r"image is 9000x20000, which is more than --max-pixels 1000; raise it if"
    ):
        index(tmp_path, max_pixels=1000)
    assert not recwarn.list
    with pytest.raises(DataError, match="image is 9000x20000, mask is 3x2"):
        index(tmp_path)
    assert not recwarn.list


def test_many_problems_are_told_where_their_list_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    problems = [Problem("bad tar", f"{number}.tar", "x") for number in range(30)]
    text = report.describe_problems(problems, open_folder(tmp_path / "file"))
    assert "... and 10 more" in text
    assert f"The whole list cannot be written to {tmp_path / 'file' / report.PROBLEMS_NAME} (" in text
