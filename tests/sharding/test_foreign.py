"""ForeignTars that others wrote become a data set; the tars stay as they are."""

import errno
import io
import json
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_shards import write_tar
from tests.faulty_server import serve
from tests.sharding.picture_folders import encoded, image_array
from unetdist.data.labels import Label, Palette
from unetdist.data.labels.masks import read_listed_mask
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.tar_index import MemberNames
from unetdist.errors import ConfigError, DataError
from unetdist.sharding import describe as report
from unetdist.sharding import foreign_tars as tar_source
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.foreign_tars import IndexJob, find_tars, guess_names
from unetdist.sharding.plan import WorkPartition
from unetdist.sharding.sources import Problem
from unetdist.sharding.writer import index_tars
from unetdist.storage import remote
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
    partition = options.pop("partition", WorkPartition())
    tars = find_tars(str(location), out and str(out))
    convert = ConvertOptions(**options)
    return index_tars(tars, names, palette, convert=convert, workers=workers, partition=partition)


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
    encoded = ShardReader(tmp_path, manifest).read(0)[1]
    palette = Palette.from_records(manifest.palette_records)
    assert read_listed_mask(palette, "auto", "error", encoded).tolist() == [[0, 1, 1], [0, 1, 1]]


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
    assert [shard.name for shard in manifest.shards] == [str(tmp_path / "x" / "a.tar"), str(tmp_path / "y" / "a.tar")]
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
    assert Manifest.load(tmp_path).num_samples == len(np.load(tmp_path / "b.tar.idx")) == 1


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
    assert f"not in the label file: 2 at x 2, y 0 in {tmp_path}/a.tar, key a" in text or "a.tar, key a" in text
    assert "b.tar, key b: image is 3x2, mask is 3x1 (width x height); pack the sample again" in text
    assert f"bad tar (1)\n  {tmp_path}/c.tar: key c has no mask c.seg.png" in text


def test_folders_that_cannot_be_right_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \.tar files here; give the folder"):
        index(tmp_path)
    pack(tmp_path / "a.tar", [])
    with pytest.raises(DataError, match="the tars hold no samples"):
        index(tmp_path)
    (tmp_path / ".ingest" / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="contains index and manifest of shards that this program wrote; give"):
        index(tmp_path)


@pytest.mark.parametrize("place", [(".tar.idx"), (MANIFEST_NAME)], ids=["index", "manifest"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: . of 1 shards are complete; free some space and run the same command"),
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
    pack(tmp_path / "a.tar", ["a"], image=encoded(np.zeros((10_000, 9_000), np.uint8)))
    with pytest.raises(DataError, match=r"image is 9000x10000, which is more than --max-pixels 1000; raise it if"):
        index(tmp_path, max_pixels=1000)
    assert not recwarn.list
    with pytest.raises(DataError, match="image is 9000x10000, mask is 3x2"):
        index(tmp_path)
    assert not recwarn.list


def test_many_problems_are_told_where_their_list_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    problems = [Problem("bad tar", f"{number}.tar", "x") for number in range(30)]
    text = report.describe_problems(problems, open_folder(tmp_path / "file"))
    assert "... and 10 more" in text
    assert f"The whole list cannot be written to {tmp_path / 'file' / report.PROBLEMS_NAME} (" in text


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (["jpg", "seg.png", "cls"], "{stem}.seg.png"),
        (["png", "mask.png"], "{stem}.mask.png"),
        (["jpg", "png", "json"], "{stem}.png"),
        (["webp", "depth.png", "label.png"], "{stem}.label.png"),
        (["JPEG", "PNG"], "{stem}.PNG"),
    ],
)
def test_masks_are_guessed(tmp_path, extensions, expected, caplog, monkeypatch):
    monkeypatch.setattr(tar_source.logger, "propagate", True)
    caplog.set_level("INFO")
    hidden = ["./.DS_Store", "d/._a.jpg", ".x.png"]
    write_tar(tmp_path / "a.tar", hidden + [f"d/{key}.{extension}" for key in "abc" for extension in extensions])
    assert guess_names(find_tars(str(tmp_path))).mask == expected
    assert f"masks are the members {expected.removeprefix('{stem}')} (as in" in caplog.text


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (["png", "depth.png"], r" \.png, \.depth\.png, .*--mask-ext"),
        (["jpg", "seg.png", "mask.png"], r" \.jpg, \.seg\.png, \.mask\.png, .*--mask-ext"),
        (["jpg", "webp"], r" \.jpg, \.webp, .*--mask-ext"),
        (["jpg"], r' \.jpg, .*--mask-name "\{stem\}_mask\.png"'),
        (["txt"], " none, .*--mask-ext"),
    ],
)
def test_an_ambiguous_guess_is_refused_with_the_candidates(tmp_path, extensions, message):
    write_tar(tmp_path / "a.tar", [f"{key}.{extension}" for key in "abc" for extension in extensions])
    with pytest.raises(DataError, match=r"a\.tar: .*" + message):
        guess_names(find_tars(str(tmp_path)))


def test_a_first_tar_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"/b\.tar: cannot be read \(.*No such file.*masks with --mask-ext"):
        guess_names(find_tars(str(tmp_path / "b.tar")))


def test_one_tar_a_brace_notation_and_a_list(tmp_path):
    for name in ("x/0.tar", "x/1.tar", "y/0.tar"):
        pack(tmp_path / name, [name[0] + name[2]])
    one = find_tars(f"{tmp_path}/x/1.tar")
    assert (str(one.out), one.names, one.shard_names) == (str(tmp_path / "x"), ("1.tar",), ("1.tar",))
    two = find_tars(f"{tmp_path}/x/{{0..1}}.tar")
    assert two.names == ("0.tar", "1.tar")
    (tmp_path / "list.txt").write_text("y/0.tar\nx/0.tar\n")
    with pytest.raises(ConfigError, match="the tars are in 2 folders; say where index and manifest go with --out"):
        find_tars(str(tmp_path / "list.txt"))
    tars = find_tars(str(tmp_path / "list.txt"), str(tmp_path / "out"))
    assert tars.shard_names == (f"{tmp_path}/y/0.tar", f"{tmp_path}/x/0.tar")
    assert find_tars(str(tmp_path / "x"), str(tmp_path / "x")).shard_names == ("0.tar", "1.tar")


@pytest.mark.parametrize("end", ["", "/"])
def test_out_is_compared_with_where_the_tars_lie(tmp_path, monkeypatch, end):
    for name in ("x/0.tar", "x/1.tar", "x/what?.tar"):
        pack(tmp_path / name, ["a"])
    monkeypatch.chdir(tmp_path)
    there = find_tars("x/{0..1}.tar", f"x{end}")
    assert (str(there.out), there.shard_names) == (f"{tmp_path}/x", ("0.tar", "1.tar"))
    here = find_tars("x/{0..1}.tar", f".{end}")
    assert here.out.path("") == Path()
    assert here.shard_names == (f"{tmp_path}/x/0.tar", f"{tmp_path}/x/1.tar")
    assert find_tars("x/what?.tar").names == ("what?.tar",)
    folder = "https://user:secret@host.invalid/x"
    beside = find_tars(f"{folder}/{{0..1}}.tar", f"{folder}{end}")
    assert (beside.out.where("a"), beside.shard_names) == (f"{folder}/a", ("0.tar", "1.tar"))


def test_a_manifest_gets_no_passwords_and_no_tokens(tmp_path):
    folder = "https://host.invalid/x"
    elsewhere = find_tars(f"{folder}/{{0..1}}.tar?download=1", str(tmp_path))
    assert elsewhere.names == elsewhere.shard_names == (f"{folder}/0.tar?download=1", f"{folder}/1.tar?download=1")
    for query in ("?token=secret", "?X-Amz-Signature=secret", "?a=1&sig=secret", ";sig=secret", "#token=secret"):
        with pytest.raises(ConfigError, match="a manifest must not contain") as caught:
            find_tars(f"https://host.invalid/x/{{0..1}}.tar{query}", str(tmp_path))
        assert "secret" not in str(caught.value)
    folder = "https://user:secret@host.invalid/x"
    with pytest.raises(ConfigError, match=r"a manifest must not contain.*~/\.netrc") as caught:
        find_tars(f"{folder}/{{0..1}}.tar", str(tmp_path))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="give the whole URL again"):
        find_tars("https://host.invalid/x/{0..1}.tar", "https://***@host.invalid/x")


@pytest.mark.parametrize("has_ranges", [True, False])
def test_tars_on_a_web_server(tmp_path, monkeypatch, has_ranges):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for name in ("0.tar", "1.tar"):
        pack(tmp_path / "www" / name, [f"key{name[0]}"])
    with serve(tmp_path / "www") as server:
        server.has_ranges = has_ranges
        location = f"{server.url}/{{0..1}}.tar"
        tars = find_tars(location, str(tmp_path / "out"))
        names = guess_names(tars)
        assert names == SEG
        index(location, out=tmp_path / "out")
        index(server.url + "/0.tar", out=tmp_path / "single")
        manifest = Manifest.load(tmp_path / "out")
        assert [shard.name for shard in manifest.shards] == [f"{server.url}/{n}.tar" for n in (0, 1)]
        assert "2 of them kept" in index(location, out=tmp_path / "out")
        with pytest.raises(DataError, match=r"bad tar \(1\)\n  http.*/2\.tar: no such file"):
            index(f"{server.url}/{{0..2}}.tar", out=tmp_path / "more")
    index(tmp_path / "www")
    local = Manifest.load(tmp_path / "www")
    assert [shard.sha256 for shard in local.shards] == [shard.sha256 for shard in manifest.shards]
    assert (local.mean, local.class_pixels) == (manifest.mean, manifest.class_pixels)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_tar_of_equal_size_that_replaced_another_on_a_server_is_indexed_anew(tmp_path, world_size):
    www, out = tmp_path / "www", tmp_path / "out"
    for name in ("0.tar", "1.tar"):
        pack(www / name, ["old"])
    size = (www / "1.tar").stat().st_size
    with serve(www) as server:
        location = f"{server.url}/{{0..1}}.tar"
        index(location, out=out)
        pack(www / "1.tar", ["new"])
        assert (www / "1.tar").stat().st_size == size
        for rank in range(world_size):
            account = index(location, out=out, partition=WorkPartition(rank, world_size, is_launched=world_size > 1))
        assert account
        reader = ShardReader(out, Manifest.load(out))
        assert [reader.key(number) for number in (0, 1)] == ["old", "new"]
    tars = [(www / name).read_bytes() for name in ("0.tar", "1.tar")]
    assert [shard.sha256 for shard in reader.manifest.shards] == [sha256(tar).hexdigest() for tar in tars]


def test_tars_behind_a_url_that_takes_files(tmp_path):
    pack(tmp_path / "a.tar", ["a"])
    index(f"file://{tmp_path}")
    assert Manifest.load(f"file://{tmp_path}").shards[0].name == "a.tar"
    assert (tmp_path / "a.tar.idx").is_file()


def test_a_place_that_takes_no_files_is_told_where_to_write_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    pack(tmp_path / "a.tar", ["a"])
    with serve(tmp_path) as server, pytest.raises(DataError, match="--out DIR"):
        index(f"{server.url}/a.tar")


def test_the_beginning_of_a_remote_tar_is_enough_for_the_guess(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", ["a", "b"])
    monkeypatch.setattr(tar_source, "_START", (tmp_path / "a.tar").stat().st_size // 2)
    with serve(tmp_path) as server:
        assert guess_names(find_tars(f"{server.url}/a.tar", str(tmp_path / "out"))) == SEG


def test_a_remote_index_cannot_point_at_local_tars(tmp_path):
    (tmp_path / "a.tar").touch()
    with pytest.raises(ConfigError, match=r"--out \(s3://bucket/b\) is on another machine, which cannot see the tars"):
        find_tars(str(tmp_path), "s3://bucket/b")
