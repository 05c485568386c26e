import pytest

from tests.apps.doctor.cases import case_of, findings_of, only, write_data
from unetdist.apps.doctor import data, pace, training
from unetdist.apps.doctor.command import leave


@pytest.fixture
def case(tmp_path):
    write_data(tmp_path)
    case = case_of(tmp_path)
    yield case
    leave(case)


def test_loader_and_disk_are_held_against_the_step(case):
    found = findings_of(case, *data.CHECKS, *training.CHECKS, *pace.CHECKS)
    assert "samples/s, the training takes " in only(found, "loader").fact
    assert "each rank needs " in only(found, "disk speed").fact
    assert "sums" not in {each.what for each in found}
    case.measured.step_s, case.measured.data_wait_s, case.measured.read_bytes_s = 0.1, 0.09, 10.0
    loader, disk = pace.judge_loader(case, [100.0])
    assert (loader.level, disk.level) == ("warning", "warning")
    assert loader.fact == "gives 100 samples/s, the training takes 40.0; steps wait 90 % of their time"
    assert loader.remedy.startswith("--data.num_workers 2")
    case.measured.data_wait_s, case.measured.read_bytes_s = 0.0, 1e9
    assert [each.level for each in pace.judge_loader(case, [45.0])] == ["warning", "ok"]
    assert [each.level for each in pace.judge_loader(case, [45.0, 45.0])] == ["ok", "ok"]


@pytest.mark.parametrize(("seconds", "level"), [(0.01, "ok"), (0.09, "warning")])
def test_the_share_of_sums_follows_from_their_size(case, seconds, level):
    case.measured.step_s, case.measured.parameters = 0.1, 250_000
    case.measured.reduce = [(1_000_000, seconds)]
    (found,) = pace.judge_sums(case, [])
    assert found.level == level
    assert found.fact.startswith("1.0 MB of gradients in ")
