import pytest
import torch

from tests.benchmarks import ours
from tests.benchmarks.peers.checked import check_contender
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.ruler import write_ruler
from unetdist.data.manifest import Manifest


@pytest.mark.parametrize("name", ["ours", "foreign"])
def test_it_loads_what_was_asked_for(name, tmp_path):
    check_contender(name, tmp_path)


def test_an_error_of_the_sharding_script_is_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"^error: .*Labels\.txt: No such file"):
        ours._shard_dataset("--labels", tmp_path / "Labels.txt", "--out", tmp_path)


def test_the_hand_over_is_timed_in_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "HANDOVER_CROP", 64)
    write_ruler(tmp_path / "pictures", (96, 128))
    job = Job(str(tmp_path / "pictures"), str(tmp_path / "formats"), crop=32, batch_size=4)
    times = ours.handover(job, 3)
    assert {name: len(values) for name, values in times.items()} == {"next": 3, "next_and_copy": 3, "copy": 3}
    assert all(value > 0 for values in times.values() for value in values)
    assert all(first <= both for first, both in zip(times["next"], times["next_and_copy"], strict=True))
    assert Manifest.load(tmp_path / "formats" / "shards").num_samples == 64


def test_the_copy_of_a_batch_is_timed():
    assert ours.transfer_time((torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)), 3) > 0
