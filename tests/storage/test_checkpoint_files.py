import io
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
from itertools import count

import fsspec
import pytest

from unetdist.errors import CheckpointError, DataError
from unetdist.storage import remote
from unetdist.storage.checkpoint_files import CheckpointFolder, has_checkpoint
from unetdist.storage.folders import open_folder


def content(step: int) -> bytes:
    return f"tensors of step {step}".encode() * 100


def commits(folder, keep_last=2) -> CheckpointFolder:
    return CheckpointFolder(open_folder(folder), keep_last=keep_last)


def write(commits: CheckpointFolder, *steps: int) -> CheckpointFolder:
    for step in steps:
        commits.write(step, content(step), {"step": step})
    return commits


def newest(folder) -> int | None:
    """Step of the newest pair, all of which is as it was written."""
    found = commits(folder).newest()
    if found is None:
        return None
    commit, tensors = found
    assert commit.facts == {"step": commit.step}
    assert tensors == content(commit.step)
    return commit.step


def files(folder) -> list[str]:
    return open_folder(folder).names()


PAIR_5, PAIR_10, PAIR_15 = ([f"step_{step:08d}.json", f"step_{step:08d}.safetensors"] for step in (5, 10, 15))


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path, monkeypatch):
    """A folder that does not exist yet, on a disk and in a store behind fsspec."""
    if request.param == "disk":
        yield str(tmp_path / "checkpoints")
    else:
        monkeypatch.setattr(remote, "SCHEMES", ("memory",))  # stands for any store
        place = f"/{secrets.token_hex(4)}"
        yield f"memory:/{place}/checkpoints"
        fsspec.filesystem("memory").rm(place, recursive=True)


def test_the_newest_is_found(folder):
    write(commits(folder), 5)
    assert newest(folder) == 5
    write(commits(folder), 10)
    assert newest(folder) == 10


def test_an_empty_folder_holds_nothing(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None
    assert not has_checkpoint(open_folder(tmp_path))


def test_only_the_last_ones_are_kept(folder):
    write(commits(folder), 5, 10, 15)
    assert files(folder) == ["latest", *PAIR_10, *PAIR_15]
    assert open_folder(folder).read("latest") == b"step_00000015"


def test_steps_are_ordered_as_numbers(folder):
    write(commits(folder, keep_last=1), 99_999_999, 100_000_000)
    assert newest(folder) == 100_000_000
    assert len(files(folder)) == 3


@pytest.mark.parametrize("pointer", [None, b"step_00000005", b"step_00000099", b"\xff rubbish"])
def test_the_pointer_may_be_gone_or_wrong(folder, pointer):
    write(commits(folder), 5, 10)
    place = open_folder(folder)
    if pointer is None:
        place.remove("latest")
    else:
        place.write("latest", pointer)
    assert newest(folder) == 10
    write(commits(folder), 15)
    assert place.read("latest") == b"step_00000015"


def flip(data: bytes) -> bytes:
    return bytes([*data[:50], data[50] ^ 1, *data[51:]])


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (".safetensors", lambda data: data[:-1], "step_00000010.safetensors has 1799 bytes instead of 1800"),
        (".safetensors", lambda data: b"", "step_00000010.safetensors has 0 bytes instead of 1800"),
        (".safetensors", flip, "step_00000010.safetensors is damaged: its sha256 is "),
        (".safetensors", None, "step_00000010.safetensors is missing"),
        (".json", lambda data: data[:-1], "step_00000010.json is damaged: Expecting ',' delimiter"),
        (".json", lambda data: b"", "step_00000010.json is damaged: Expecting value"),
        (".json", lambda data: b"[]", "step_00000010.json is damaged: it is not a JSON object"),
        (".json", lambda data: b"\xff", "step_00000010.json is damaged: 'utf-8' codec can't decode"),
        (".json", lambda data: data.replace(b'"step": 10', b'"step": 12'), "is damaged: its sha256 is "),
    ],
)
def test_a_damaged_one_is_told_and_the_one_before_is_used(folder, caplog, file, spoil, message):
    write(commits(folder), 5, 10)
    place, name = open_folder(folder), f"step_00000010{file}"
    if spoil is None:
        place.remove(name)
    else:
        place.write(name, spoil(place.read(name)))
    reader = commits(folder)
    assert reader.newest()[0].step == 5
    (line,) = caplog.messages
    assert f"{place}/" in line
    assert message in line
    assert "the checkpoint before it is used" in line
    write(reader, 15)  # what is damaged does not count among those that are kept
    assert files(folder) == ["latest", *PAIR_5, *PAIR_15]


def test_a_damaged_one_is_replaced_when_training_comes_to_its_step(folder):
    write(commits(folder), 5, 10)
    open_folder(folder).write(PAIR_10[1], b"rubbish")
    reader = commits(folder)
    assert reader.newest()[0].step == 5
    write(reader, 10)
    assert newest(folder) == 10
    assert files(folder) == ["latest", *PAIR_5, *PAIR_10]


def test_where_none_is_whole_nothing_is_begun_anew(folder, caplog):
    write(commits(folder), 5, 10)
    for name in (PAIR_5[0], PAIR_10[1]):
        open_folder(folder).write(name, b"rubbish")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoints holds no whole checkpoint \(the log above says what is wrong with each\); restore one "
        "from a copy, remove that folder to start from the beginning, or choose another --name",
    ):
        commits(folder).newest()
    assert len(caplog.messages) == 2


def test_a_pointer_without_files_is_no_new_run(folder):
    open_folder(folder).write("latest", b"rubbish")
    assert has_checkpoint(open_folder(folder))
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        commits(folder).newest()


def test_a_refused_removal_harms_nothing(folder, monkeypatch, caplog):
    one = write(commits(folder), 5, 10)

    def refuse(*_):
        raise PermissionError("not allowed")

    monkeypatch.setattr(type(one.folder), "remove", refuse)
    write(one, 15)
    assert newest(folder) == 15
    assert caplog.messages == [f"{one.folder}: a file that is no longer needed cannot be removed (not allowed)"]


def kill_at(call: int, folder) -> None:
    """Write the pair of step 10, and be killed before call number `call` to the system or to a file."""
    calls = count()
    one = commits(folder, keep_last=1)

    def watch(frame, event, function):
        if event != "c_call":
            return
        is_to_disk = function.__module__ in ("posix", "_io", "io") or isinstance(function.__self__, io.IOBase)
        if is_to_disk and next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    write(one, 10)
    os._exit(0)


def test_a_writer_killed_anywhere_leaves_a_whole_pair_and_nothing_that_stays(tmp_path):
    found = []
    for call in count():
        folder = tmp_path / str(call)
        write(commits(folder), 5)
        child = multiprocessing.get_context("fork").Process(target=kill_at, args=(call, folder))
        child.start()
        child.join()
        found.append(newest(folder))
        write(commits(folder, keep_last=1), 15)
        assert files(folder) == ["latest", *PAIR_15]
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert len(found) > 50
    assert found == sorted(found)  # the former pair up to the commit, and from it on the new one
    assert {*found} == {5, 10}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"only root may mount a file system: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_the_former_pair_and_no_rubbish(small_disk):
    one = write(commits(small_disk / "checkpoints"), 5)
    for size in (200_000, 60_000):  # full in the middle of the tensors, and perhaps only at the commit
        with pytest.raises(OSError, match="No space left on device"):
            one.write(10, bytes(size), {"long": "x" * 10_000})
        assert newest(small_disk / "checkpoints") == 5
    write(one, 10)
    assert newest(small_disk / "checkpoints") == 10
    assert files(small_disk / "checkpoints") == ["latest", *PAIR_5, *PAIR_10]


def test_a_disk_that_becomes_read_only_keeps_what_it_holds(small_disk, caplog):
    one = write(commits(small_disk / "checkpoints"), 5)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        write(one, 10)
    assert newest(small_disk / "checkpoints") == 5


@pytest.fixture
def bucket(monkeypatch):
    """URL of a bucket on loopback."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    monkeypatch.setattr(remote, "_file_systems", {})
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.resource("s3").Bucket("runs").create()
    yield "s3://runs"
    server.stop()


def test_an_object_store_holds_pairs_as_a_disk_does(bucket, monkeypatch):
    one = write(commits(f"{bucket}/tiny"), 5, 10, 15)
    assert files(f"{bucket}/tiny") == ["latest", *PAIR_10, *PAIR_15]
    assert newest(f"{bucket}/tiny") == 15
    one.folder.remove(PAIR_15[1])
    assert newest(f"{bucket}/tiny") == 10
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    with pytest.raises((OSError, DataError), match="s3://absent/tiny/step_00000020.safetensors"):
        write(commits("s3://absent/tiny"), 20)
