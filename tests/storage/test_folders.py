"""One interface over paths and URLs."""

import io
import pickle
from pathlib import Path

import pytest

from tests.faulty_server import serve
from unetdist.errors import ConfigError, DataError
from unetdist.storage import remote
from unetdist.storage.folders import open_folder
from unetdist.storage.remote import RangesUnsupportedError

DATA = bytes(range(256)) * 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    (tmp_path / "a.tar").write_bytes(DATA)
    (tmp_path / "b.idx").write_bytes(b"index")
    (tmp_path / ".ingest").mkdir()
    (tmp_path / ".ingest" / "plan.json").write_bytes(b"plan")
    return tmp_path


@pytest.fixture(params=["path", "str", "file", "http"])
def folder(request, place):
    if request.param == "http":
        with serve(place) as server:
            yield open_folder(server.url)
    else:
        location = {"path": place, "str": str(place), "file": f"file://{place}"}
        yield open_folder(location[request.param])


def downloaded(folder, name, **options):
    file = io.BytesIO()
    folder.download(name, file, **options)
    return file.getvalue()


def test_reading(folder):
    assert folder.read("a.tar") == DATA
    assert folder.read(".ingest/plan.json") == b"plan"
    assert downloaded(folder, "a.tar") == DATA
    assert folder.size("a.tar") in (len(DATA), None)
    assert "a.tar" in folder.names()
    assert folder.names(".idx") == ["b.idx"]


def test_travels_to_other_processes(folder):
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert again.read("b.idx") == b"index"
    assert open_folder(folder) is folder


def test_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="No such file"):
        folder.read("missing")
    with pytest.raises(FileNotFoundError, match="No such file"):
        downloaded(folder, "missing")


@pytest.mark.parametrize("kind", ["path", "file"])
def test_writing(place, kind):
    folder = open_folder(place / "new" if kind == "path" else f"file://{place}/new")
    assert folder.names() == []
    folder.write("deep/a", b"abc")
    folder.write("a", b"abc")
    folder.upload("b", place / "a.tar")
    assert folder.read("b") == DATA
    assert folder.names() == ["a", "b"]
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]


def test_a_local_folder(place):
    folder = open_folder(place)
    assert (folder.is_local, str(folder)) == (True, str(place))
    assert folder.path("a.tar") == place / "a.tar"
    assert folder.where("a.tar") == str(place / "a.tar")
    assert open_folder("C:/data").is_local


def test_a_remote_folder():
    folder = open_folder("s3://me:secret@bucket/data?token=x")
    assert not folder.is_local
    assert str(folder) == "s3://***@bucket/data?***"
    assert open_folder("hf://datasets/a/b").where("a.tar") == "hf://datasets/a/b/a.tar"
    with pytest.raises(
        DataError, match=r"^s3://\*\*\*@bucket/data\?\*\*\*: this needs a local folder; copy the data set"
    ):
        folder.path("a.tar")


@pytest.mark.parametrize("location", [Path("nowhere"), "file:///nowhere"])
def test_a_name_that_is_a_url_is_that_file_whatever_the_folder(place, location):
    folder = open_folder(location)
    url = f"file://{place}/a.tar"
    assert folder.where(url) == url
    assert folder.read(url) == DATA
    assert folder.read_range(url, 7, 10) == DATA[7:17]
    assert folder.size(url) == len(DATA)
    assert downloaded(folder, url, most=5) == DATA[:5]


def test_commands_are_no_longer_run(tmp_path):
    with pytest.raises(ConfigError, match=r"^pipe:touch .*commands are no longer run; .* give a URL"):
        open_folder(f"pipe:touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()


def test_a_server_that_ignores_ranges_is_found_out(place):
    with serve(place) as server:
        server.has_ranges = False
        folder = open_folder(server.url)
        with pytest.raises(RangesUnsupportedError):
            folder.read_range("a.tar", 0, 1)
        assert downloaded(folder, "a.tar") == DATA
        assert downloaded(folder, "a.tar", most=9) == DATA[:9]
