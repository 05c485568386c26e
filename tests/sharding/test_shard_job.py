"""One shard: what is kept of a former run, and what is written again."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.sharding.ingested import contents, write
from tests.sharding.picture_folders import palette, write_folders
from unetdist.sharding import shard_job
from unetdist.sharding.convert import ConvertOptions
from unetdist.sharding.sources import from_folders
from unetdist.storage.folders import open_folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


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
    path = {
        "tar": out / "000001.tar",
        "index": out / "000001.tar.idx",
        "record": out / ".ingest/000001.json",
    }[harm.split()[-1]]
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
