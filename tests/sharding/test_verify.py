import dataclasses
import http.server
import re
import threading
from functools import partial

import numpy as np
import pytest

from tests.synthetic import write_shards
from unetdist.data.manifest import Manifest
from unetdist.data.shards import encode_mask, index_path, open_shard, save_index
from unetdist.errors import DataError
from unetdist.sharding import verify as verify_module
from unetdist.sharding.verify import BAD_INDEX, BAD_SAMPLE, CHANGED, LOST, MISCOUNTED, describe, verify
from unetdist.storage.folders import open_folder


@pytest.fixture
def folder(tmp_path):
    """Twelve samples in shards of five, five and two."""
    write_shards(tmp_path, 12)
    return tmp_path


def problems_of(folder, **options):
    account = verify(folder, Manifest.load(folder), **options)
    return account, [(problem.kind, problem.where, problem.detail) for problem in account.problems]


def damage(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_data_set(folder, workers):
    account, problems = problems_of(folder, workers=workers)
    assert problems == []
    assert account.statistics.num_samples == 12
    manifest = Manifest.load(folder)
    assert account.statistics.pixels[:3].tolist() == list(manifest.class_pixels)
    said = describe(account, open_folder(folder), manifest)
    assert said.startswith(f"{folder}: good. Verified 12 of 12 samples, 3 shards, ")


def test_a_flipped_bit_in_a_picture(folder):
    shard = folder / "000001.tar"
    offset = int(np.load(index_path(shard))[2, 1])
    damage(shard, offset + 60, b"\xff")
    account, problems = problems_of(folder)
    assert account.statistics.num_samples == 11
    (kind, where, detail), (bad, sample, reason) = problems
    assert (kind, where) == (CHANGED, str(shard))
    assert re.fullmatch(r"has sha256 \w{64}, the manifest says \w{64}", detail)
    assert (bad, sample) == (BAD_SAMPLE, f"{shard}, key pictures/007")
    assert reason == "damaged: its bytes are not those that were written"


def test_a_shard_that_is_cut_off_still_has_good_samples(folder):
    shard = folder / "000000.tar"
    header = int(np.load(index_path(shard))[3, 0])
    data = shard.read_bytes()
    shard.write_bytes(data[: header + 700])
    account, problems = problems_of(folder)
    assert account.statistics.num_samples == 10
    assert (CHANGED, str(shard), f"has {header + 700} bytes, the manifest says {len(data)}") in problems
    assert any(kind == CHANGED and detail.startswith("cut off") for kind, _, detail in problems)
    assert [where for kind, where, _ in problems if kind == BAD_SAMPLE] == [
        f"{shard}, key pictures/003",
        f"{shard}, sample 4",
    ]


def test_a_shard_and_an_index_that_are_not_there(folder):
    (folder / "000000.tar").unlink()
    index_path(folder / "000002.tar").unlink()
    account, problems = problems_of(folder)
    assert account.statistics.num_samples == 5
    (kind, where, detail), (bad, of, reason) = problems
    assert (kind, where) == (LOST, str(folder / "000000.tar"))
    assert detail == "cannot be read (No such file or directory)"
    assert (bad, of) == (BAD_INDEX, str(folder / "000002.tar"))
    assert reason.startswith("cannot be read (")


def test_an_index_that_belongs_to_another_tar(folder):
    rows = np.load(folder / "000000.tar.idx")
    rows[1, 1] += 512
    save_index(folder / "000000.tar", rows)
    _, ((kind, where, detail),) = problems_of(folder)
    assert (kind, where) == (BAD_INDEX, f"{folder}/000000.tar")
    assert detail.startswith("is not the index that the manifest lists")
    manifest = Manifest.load(folder)
    shards = tuple(dataclasses.replace(shard, index_sha256="") for shard in manifest.shards)
    dataclasses.replace(manifest, shards=shards).save(folder)  # It vouches for none: each row is looked at.
    _, problems = problems_of(folder)
    assert [(kind, where) for kind, where, _ in problems] == [
        (BAD_SAMPLE, f"{folder}/000000.tar, key pictures/001"),
        (BAD_INDEX, f"{folder}/000000.tar, sample 1"),
    ]
    assert problems[1][2] == "does not point to a member of the tar"


def write_one(folder, mask, **changes):
    """A data set of one sample with this mask, whose manifest is that of another one."""
    good = write_shards(folder, 1)
    image = (folder / "000000.tar").read_bytes()
    offset, size = np.load(folder / "000000.tar.idx")[0, 1:3].tolist()
    with open_shard(folder / "000000.tar") as writer:
        writer.add("a", image[offset : offset + size], "png", encode_mask(mask), {})
    dataclasses.replace(good, shards=(writer.shard,), **changes).save(folder)


def test_a_mask_of_another_size_and_unknown_classes(tmp_path):
    write_one(tmp_path / "size", np.zeros((24, 30), np.uint8))
    write_one(tmp_path / "class", np.full((24, 32), 7, np.uint8))
    for name, reason in (("size", "mask is 30x24, image is 32x24"), ("class", "mask holds class index 7, but there")):
        account, ((kind, where, detail),) = problems_of(tmp_path / name)
        assert (kind, where) == (BAD_SAMPLE, f"{tmp_path / name}/000000.tar, key a")
        assert detail.startswith(reason)
        assert account.statistics.num_samples == 0


def test_counts_that_differ_from_the_manifest(tmp_path):
    write_one(tmp_path, np.full((24, 32), 2, np.uint8), class_pixels=(7, 0, 768), class_images=(0, 0, 1))
    _, problems = problems_of(tmp_path)
    assert problems[0] == (MISCOUNTED, "class sky", "0 pixels, the manifest says 7")
    assert {where for _, where, _ in problems} <= {"class sky", "ignored"}


def test_many_problems_are_cut_and_whole_in_a_file(tmp_path):
    write_shards(tmp_path, 40, per_shard=40)
    damage(tmp_path / "000000.tar", 0, b"\0" * 120_000)
    account, problems = problems_of(tmp_path)
    assert len(problems) > 20
    said = describe(account, open_folder(tmp_path), Manifest.load(tmp_path))
    num_good = account.statistics.num_samples
    assert said.startswith(f"{tmp_path}: {len(problems)} problems; {num_good} of 40 samples are good.\n")
    assert re.search(r"\.\.\. and \d+ more", said)
    assert f"All of them are listed in {tmp_path}/problems.txt" in said
    assert len((tmp_path / "problems.txt").read_text().splitlines()) > len(problems)
    assert said.endswith("run the command that wrote them: it keeps good shards.")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def url(folder):
    """The data set on a web server that knows no ranges."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_shards_of_a_web_server_are_fetched_verified_and_removed(folder, url, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(verify_module.tempfile, "tempdir", str(temporary))
    assert problems_of(url)[1] == []
    damage(folder / "000002.tar", 700, b"\xff")
    index_path(folder / "000001.tar").unlink()
    (folder / "000000.tar").unlink()
    account, problems = problems_of(url)
    assert [(kind, where) for kind, where, _ in problems][:2] == [
        (LOST, f"{url}/000000.tar"),
        (BAD_INDEX, f"{url}/000001.tar"),
    ]
    assert (BAD_SAMPLE, f"{url}/000002.tar, key pictures/010") in [problem[:2] for problem in problems]
    assert account.statistics.num_samples == 1
    assert list(temporary.iterdir()) == []


def test_no_room_for_a_shard_of_a_server(url, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    manifest = Manifest.load(url)
    monkeypatch.setattr(verify_module, "open", full, raising=False)
    message = r"no space for a shard of 0 MB; free some, set TMPDIR to another folder"
    with pytest.raises(DataError, match=message):
        verify(url, manifest)
