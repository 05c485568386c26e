"""ForeignTars of others are found where they are, and which members are masks is guessed or asked."""

import io
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from tests.faulty_server import serve
from tests.sharding.picture_folders import encoded, image_array
from tests.sharding.test_foreign import SEG, index, pack
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.errors import ConfigError, DataError
from unetdist.sharding import foreign_tars as tar_source
from unetdist.sharding.foreign_tars import find_tars, guess_names
from unetdist.sharding.plan import WorkPartition
from unetdist.storage import retries


def tar_of(path: Path, names) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


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
    tar_of(tmp_path / "a.tar", [f"d/{key}.{extension}" for key in "abc" for extension in extensions])
    assert guess_names(find_tars(str(tmp_path))).mask == expected
    assert f"masks are the members {expected.removeprefix('{stem}')} (as in" in caplog.text


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        (
            ["png", "depth.png"],
            r"which pictures are the masks\? Choose one of --mask-ext depth\.png, --mask-ext png",
        ),
        (["jpg", "seg.png", "mask.png"], r"--mask-ext jpg, --mask-ext mask\.png, --mask-ext seg\.png"),
        (["jpg", "webp"], "--mask-ext jpg, --mask-ext webp"),
        (["jpg"], r'no two pictures have the same key .* a\.jpg, b\.jpg; .*--mask-name "\{stem\}_mask\.png"'),
        (["txt"], "it begins with no pictures; say how masks are named"),
    ],
)
def test_an_ambiguous_guess_is_refused_with_the_candidates(tmp_path, extensions, message):
    tar_of(tmp_path / "a.tar", [f"{key}.{extension}" for key in "abc" for extension in extensions])
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
    with pytest.raises(
        ConfigError, match="the tars are in 2 folders; say where index and manifest go with --out"
    ):
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
    assert (str(there.out), there.shard_names) == ("x", ("0.tar", "1.tar"))
    here = find_tars("x/{0..1}.tar", f".{end}")
    assert here.out.path("") == Path()
    assert here.shard_names == (f"{tmp_path}/x/0.tar", f"{tmp_path}/x/1.tar")
    assert find_tars("x/what?.tar").names == ("what?.tar",)
    folder = "https://user:secret@host.invalid/x"
    beside = find_tars(f"{folder}/{{0..1}}.tar", f"{folder}{end}")
    assert (beside.out.where("a"), beside.shard_names) == (f"{folder}/a", ("0.tar", "1.tar"))


def test_a_manifest_gets_no_passwords_and_no_tokens(tmp_path, caplog):
    folder = "https://user:secret@host.invalid/x"
    elsewhere = find_tars(f"{folder}/{{0..1}}.tar?download=1", str(tmp_path))
    assert elsewhere.names == (f"{folder}/0.tar?download=1", f"{folder}/1.tar?download=1")
    assert elsewhere.shard_names == tuple(f"https://host.invalid/x/{n}.tar?download=1" for n in (0, 1))
    assert "~/.netrc" in caplog.text
    for query in (
        "?token=secret",
        "?X-Amz-Signature=secret",
        "?a=1&sig=secret",
        ";sig=secret",
        "#token=secret",
    ):
        with pytest.raises(ConfigError, match="a manifest must not contain") as caught:
            find_tars(f"https://host.invalid/x/{{0..1}}.tar{query}", str(tmp_path))
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="give the whole URL again"):
        find_tars(f"{folder}/{{0..1}}.tar", "https://***@host.invalid/x")


@pytest.mark.parametrize("has_ranges", [True, False])
def test_tars_on_a_web_server(tmp_path, monkeypatch, has_ranges):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
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
            account = index(
                location, out=out, partition=WorkPartition(rank, world_size, is_launched=world_size > 1)
            )
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
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
    pack(tmp_path / "a.tar", ["a"])
    with serve(tmp_path) as server, pytest.raises(DataError, match="--out DIR"):
        index(f"{server.url}/a.tar")


def test_a_large_sample_is_fetched_whole_for_the_guess(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_source, "_START", 2000)
    pack(tmp_path / "a.tar", ["a", "b"], image=encoded(image_array(0, (100, 100))))
    pack(tmp_path / "b.tar", ["a", "b"])
    with serve(tmp_path) as server:
        assert guess_names(find_tars(f"{server.url}/b.tar", str(tmp_path / "out"))) == SEG
        assert guess_names(find_tars(f"{server.url}/a.tar", str(tmp_path / "out"))) == SEG


def test_a_remote_index_cannot_point_at_local_tars(tmp_path):
    (tmp_path / "a.tar").touch()
    with pytest.raises(
        ConfigError, match=r"--out \(s3://bucket/b\) is on another machine, which cannot see the tars"
    ):
        find_tars(str(tmp_path), "s3://bucket/b")
