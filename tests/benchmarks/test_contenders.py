import sys
from pathlib import Path

import pytest

from tests.benchmarks.contenders import OURS, PEERS, ROOT, Contender, Process, VoidError
from tests.benchmarks.peers.protocol import Job

JOB = Job("pictures", "work", crop=4, batch_size=2)

REPLY = """
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({reply}), flush=True)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A process of a contender whose code is given."""
    started = []

    def run(code, *, core=None, packages=("numpy",)):
        (tmp_path / "made_up.py").write_text(code)
        monkeypatch.setattr("tests.benchmarks.contenders.ROOT", tmp_path)
        contender = Contender("made-up", "made up", "made_up", packages)
        started.append(
            Process(contender, python=sys.executable, core=core, log=tmp_path / "logs" / "log.txt")
        )
        return started[-1]

    yield run
    for process in started:
        process.close()


def test_a_request_is_answered(start):
    process = start(REPLY.format(reply="request"))
    assert process.ask("time", seconds=2) == {"do": "time", "seconds": 2}


def test_one_core_and_one_thread(start):
    code = REPLY.format(reply="[sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS']]")
    assert start(code, core=0).ask("look") == [[0], "1"]


def test_a_search_path_of_the_user_is_kept(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    paths = start(REPLY.format(reply="sys.path")).ask("look")
    assert {str(tmp_path), "/of/the/user"} <= set(paths)


def test_a_missing_package_is_named_with_what_to_install(start):
    reply = REPLY.format(reply="{'error': 'ModuleNotFoundError', 'missing': 'numpy'}")
    process = start(reply, packages=("numpy", "torch"))
    with pytest.raises(
        VoidError, match=r"has no module numpy; install: .*python.* -m pip install numpy torch$"
    ):
        process.open(JOB)


def test_an_error_is_told_with_the_log(start, tmp_path):
    process = start(REPLY.format(reply="{'error': 'ValueError: no shards' + 999 * '.', 'missing': None}"))
    with pytest.raises(VoidError, match=r"ValueError: no shards\.+ \(more in .*log\.txt\)") as caught:
        process.open(JOB)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_process_that_ends_says_why(start):
    process = start("raise SystemExit('no numpy here')")
    with pytest.raises(VoidError, match=r"its process ended: no numpy here \(all of it in .*log\.txt\)"):
        process.open(JOB)


def test_names_are_unique_and_every_module_is_there():
    everybody = (OURS, *PEERS)
    assert len({contender.name for contender in everybody}) == len(everybody)
    for contender in everybody:
        assert (ROOT / Path(*contender.module.split("."))).with_suffix(".py").is_file()


def test_every_peer_says_where_its_way_is_written():
    for contender in PEERS:
        if contender.packages:
            text = (ROOT / Path(*contender.module.split("."))).with_suffix(".py").read_text()
            assert "https://" in text.split('"""')[1]
