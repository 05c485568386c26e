import io

import pytest
from rich.console import Console

from tests.benchmarks import remote
from tests.data.small_shards import write_small_shards
from unetdist.errors import DataError


@pytest.fixture
def shards(tmp_path):
    write_small_shards(tmp_path / "shards", [20, 0, 13])
    return tmp_path / "shards"


def test_the_same_shards_at_a_url(shards):
    streamed = remote.stream(shards, [f"file://{shards}"], crop=8, num_rounds=2, seconds=0.01)
    assert streamed.locations == (str(shards), f"file://{shards}")
    assert all(seconds > 0 for seconds in streamed.first_batch_s.values())
    assert len(streamed.measured.rounds) == 2
    text = io.StringIO()
    Console(file=text, width=200).print(remote.table(streamed))
    assert f"file://{shards}" in text.getvalue()


def test_shards_that_do_not_come(shards, monkeypatch):
    monkeypatch.setattr(remote, "FILL_S", 0.0)
    monkeypatch.setattr("unetdist.data.cache.ShardCache.find", lambda *_: None)
    with pytest.raises(DataError, match=r"not all shards were cached within 0 s; measure fewer of them\."):
        remote.stream(shards, [f"file://{shards}"], crop=8, num_rounds=1, seconds=0.01)
