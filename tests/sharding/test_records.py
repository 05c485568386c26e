"""What is known of a finished shard outlives the process, and is believed only where it fits."""

import json
from dataclasses import replace

import pytest

from tests.sharding.picture_folders import (
    color_mask,
    encoded,
    image_array,
    mask_array,
    palette,
    write_folders,
)
from unetdist.errors import DataError
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.shard_job import WriteJob, finish, load_record, record_name
from unetdist.sharding.sources import from_folders
from unetdist.storage.folders import open_folder


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
