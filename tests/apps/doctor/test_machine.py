import pytest

from tests.apps.doctor.cases import case_of, findings_of, level_of
from unetdist.apps.doctor import machine

RANK = {
    "model": "a processor",
    "cores": 4,
    "quota": None,
    "threads": 2,
    "load": 0.1,
    "local": 2,
    "is_cpu": True,
    "units": "AVX2",
}


def test_this_machine_is_looked_at(tmp_path):
    found = findings_of(case_of(tmp_path), *machine.CHECKS)
    assert {each.what for each in found} >= {"processor", "devices", "memory", "open files"}


@pytest.mark.parametrize(
    ("changed", "what", "remedy"),
    [
        ({"threads": 4}, "threads", "export OMP_NUM_THREADS=2"),
        ({"quota": 2.0, "threads": 1}, "cores", "give it more, if you can"),
        ({"load": 9.0}, "load", "look again when the machine is idle"),
        ({"local": 8, "threads": 0}, "cores", "start fewer processes, or give the job more cores"),
    ],
)
def test_too_few_cores_for_what_is_to_be_done(changed, what, remedy):
    _, found = machine.judge_processor(None, [{**RANK, **changed}])
    assert (found.level, found.what, found.remedy) == ("warning", what, remedy)


def test_enough_cores_are_fine():
    assert level_of(machine.judge_processor, None, [RANK]) == ["ok"]


def test_limits_of_a_container_are_read(tmp_path):
    assert machine.quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("4096\n")
    assert (machine.quota(tmp_path), machine.memory_limit(tmp_path)) == (1.5, 4096)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (machine.quota(tmp_path), machine.memory_limit(tmp_path)) == (None, None)


def test_unequal_and_busy_devices_are_warned_of():
    ranks = [{"text": "A, 80 GB", "name": "A", "used": 0.5}, {"text": "B, 40 GB", "name": "B", "used": 0.0}]
    unequal, busy = machine.judge_devices(None, ranks)
    assert (unequal.level, unequal.fact) == ("warning", "rank 0: A, 80 GB; rank 1: B, 40 GB")
    assert (busy.level, busy.fact) == ("warning", "rank 0: 50 % of its memory is taken")


def test_too_little_memory_is_a_problem_of_its_machine():
    rank = {"node": "a", "total": 8e9, "limit": 2e9, "free": 1.5e9, "local": 2}
    (found,) = machine.judge_memory(None, [rank, rank])
    assert found.level == "problem"
    assert found.fact == "1.5 GB free of 8.0 GB, the container's limit is 2.0 GB, for 2 process(es)"
    enough = {**rank, "free": 2.5e9, "node": "b"}
    assert sorted(level_of(machine.judge_memory, None, [rank, enough])) == ["ok", "problem"]


def test_little_shared_memory_and_few_open_files_are_warned_of():
    assert level_of(machine.judge_shared_memory, None, [{"free": 5e6, "total": 64e6}]) == ["warning"]
    assert level_of(machine.judge_shared_memory, None, [None]) == ["warning"]
    (found,) = machine.judge_open_files(None, [[256, 4096]])
    assert (found.level, found.fact, found.remedy) == ("warning", "256 at a time", "ulimit -n 4096")
    assert level_of(machine.judge_open_files, None, [[-1, -1]]) == ["ok"]
