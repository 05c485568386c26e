from pathlib import Path

import pytest

from tests.benchmarks.peers.parquet import write_parquet
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.ruler import NUM_PICTURES, write_ruler


def test_bytes_of_the_files_are_kept(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_ruler(tmp_path, (16, 24))
    job = Job(str(tmp_path), str(tmp_path), crop=8, batch_size=2)
    write_parquet(job, str(tmp_path))
    rows = parquet.read_table(tmp_path / "00000.parquet").to_pylist()
    assert len(rows) == NUM_PICTURES
    for row, (image, mask) in zip(rows, job.pairs(), strict=True):
        assert row["image"]["bytes"] == Path(image).read_bytes()
        assert row["mask"]["bytes"] == Path(mask).read_bytes()
