"""One shard: what is kept of a former run, and what is written again."""

import io
import json
from dataclasses import replace

import pytest

from tests.sharding.ingested import contents, write
from tests.sharding.picture_folders import color_mask, encoded, image_array, mask_array, palette, write_folders
from unetdist.data.shards import ShardWriter
from unetdist.errors import DataError
from unetdist.sharding import shard_job
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.shard_job import WriteJob, finish, load_record, record_name
from unetdist.sharding.sources import from_folders
from unetdist.storage.folders import open_folder


def test_tar_and_index_have_the_bytes_of_earlier_versions():
    """`webdataset.TarWriter` sorts members by extension and pads to 10,240 bytes: it would change every hash."""
    writer = ShardWriter(io.BytesIO(), "0.tar")
    record = {"key": "day/1.x", "height": 3, "width": 4}
    writer.add("day/1.x", b"image" * 200, "jpg", b"mask" * 150, record)
    writer.add("k" * 120, b"image", "png", b"mask", {"key": "k" * 120, "image": "\u00e4.png"})
    writer.finish()
    shard = writer.shard
    assert shard.num_bytes == 11264
    assert shard.sha256.startswith("50d18cd300cf624c22071af08d88139d")
    assert shard.index_sha256.startswith("cae167679f600f66de88cf7902dc7baf")


def test_a_second_run_keeps_every_shard(root, tmp_path, monkeypatch):
    write(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(shard_job.WriteJob, "make", lambda job: pytest.fail("written again"))
    assert "4 shards, 4 of them kept from before" in write(root, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("harm", ["tar", "index", "no tar", "no index", "record"])
def test_what_was_damaged_is_written_again(root, tmp_path, harm):
    out = tmp_path / "out"
    write(root, out)
    before = contents(out)
    path = {"tar": out / "000001.tar", "index": out / "000001.tar.idx", "record": out / ".ingest/000001.json"}[
        harm.split()[-1]
    ]
    path.unlink() if harm.startswith("no") else path.write_bytes(path.read_bytes()[:-100])
    write(root, out)
    assert contents(out) == before


def test_a_record_of_a_job_changes_with_all_that_decides_its_bytes(root, tmp_path):
    samples = from_folders(root / "images", root / "masks").samples
    job = shard_job.WriteJob(
        folder=open_folder(tmp_path),
        number=0,
        palette=palette(root),
        options=ConvertOptions(),
        samples=samples,
        reader=None,
    )
    others = [
        replace(job, samples=samples[1:]),
        replace(job, samples=(replace(samples[0], stamp="x"), *samples[1:])),
        replace(job, options=ConvertOptions(image_format="png")),
    ]
    assert len({item.fingerprint for item in [job, *others]}) == 4
    assert replace(job, options=ConvertOptions(skip_bad=True)).fingerprint == job.fingerprint


@pytest.fixture(params=["path", "url"])
def job(request, tmp_path) -> WriteJob:
    root = write_folders(tmp_path / "data", 4)
    source = from_folders(root / "images", root / "masks")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" if request.param == "path" else f"file://{tmp_path}/out"
    return WriteJob(
        folder=open_folder(out),
        number=3,
        palette=palette(root),
        options=ConvertOptions(),
        samples=source.samples,
        reader=source.reader,
    )


def test_a_finished_shard_is_kept_and_told_as_before(job):
    first = finish(job)
    assert not first.is_kept
    assert first.shard.name == "000003.tar"
    assert job.folder.size("000003.tar") == first.shard.num_bytes
    again = finish(job)
    assert again.is_kept
    assert replace(again, is_kept=False, account=None) == replace(first, account=None)
    assert again.account.statistics.to_record() == first.account.statistics.to_record()
    assert again.account.notes == first.account.notes


@pytest.mark.parametrize("name", ["000003.tar", "000003.tar.idx", ".ingest/000003.json"])
def test_what_is_missing_or_short_is_made_again(job, name):
    first = finish(job)
    whole = job.folder.read(name)
    job.folder.remove(name)
    finish(job)
    assert job.folder.read(name) == whole
    if not name.endswith(".idx"):
        job.folder.write(name, whole[:-100])
        assert finish(job).shard == first.shard
        assert job.folder.read(name) == whole


def test_a_bad_shard_is_recorded_by_another_name_and_never_kept(job, tmp_path):
    (tmp_path / "data/images/day0/00.jpg").write_bytes(b"no image")
    (tmp_path / "data/masks/day1/01.png").write_bytes(encoded(image_array(0)))
    for _ in range(2):
        finished = finish(job)
        assert finished.shard is None
        assert len(finished.account.problems) == 2
        assert not finished.is_kept
        assert load_record(job, record_name(3)) is None
        told = load_record(job, record_name(3, is_bad=True))
        assert told.account.problems == finished.account.problems
        assert told.account.found == finished.account.found
        assert job.folder.names(".tar") == []
    (tmp_path / "data/images/day0/00.jpg").write_bytes(encoded(image_array(0), "JPEG"))
    (tmp_path / "data/masks/day1/01.png").write_bytes(color_mask(mask_array(1)))
    source = from_folders(tmp_path / "data/images", tmp_path / "data/masks")
    assert finish(replace(job, samples=source.samples)).shard
    assert open_folder(job.folder.where(".ingest")).names() == ["000003.json"]


def test_records_of_another_job_or_without_sense_are_not_believed(job):
    finish(job)
    name = record_name(3)
    other = replace(job, options=ConvertOptions(resize=(8, 8)))
    assert load_record(other, name) is None
    assert load_record(replace(job, options=ConvertOptions(max_pixels=7)), name) is not None
    record = json.loads(job.folder.read(name))
    for damaged in (b"", b"[]", b"{}", b'{"fingerprint": 1', json.dumps(record | {"shard": 5}).encode()):
        job.folder.write(name, damaged)
        assert load_record(job, name) is None


def test_a_server_that_fails_is_no_missing_record(job, monkeypatch):
    def fail(self, name):
        raise DataError("cannot be reached")

    monkeypatch.setattr(type(job.folder), "read", fail)
    with pytest.raises(DataError, match="cannot be reached"):
        load_record(job, record_name(3))
