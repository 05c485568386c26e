import sys

import numpy as np
import pytest

from tests.benchmarks.contenders import OURS, PEERS, Contender, VoidError
from tests.benchmarks.data import Plan, choose, epoch_length, prepare, run_case
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.source import Case, Pictures
from unetdist.errors import ConfigError


def test_contenders_are_chosen_by_name():
    assert choose("all") == PEERS
    assert [contender.name for contender in choose("dali, files-pil")] == ["dali", "files-pil"]


@pytest.mark.parametrize("names", ["tfdata", "dali,tfdata", ""])
def test_unknown_names_are_refused_with_the_known_ones(names):
    with pytest.raises(
        ConfigError, match=r"--against .* names nobody who is known; use all, or some of .*webdataset"
    ):
        choose(names)


def test_small_pictures_have_longer_epochs():
    assert epoch_length(Case(480, 360, 256)) > epoch_length(Case(2048, 1024, 512))


class Wrong:
    """A process that loads black pictures with masks of nobody's class."""

    def __init__(self, log, value):
        self.log, self.value = log, value

    def open(self, job):
        pass

    def ask(self, do, **arguments):
        images = np.zeros((4, 2, 8, 8, 3), np.uint8)
        np.savez(arguments["path"], images=images, masks=np.full((4, 2, 8, 8), self.value, np.uint8))


@pytest.mark.parametrize(
    ("value", "reason"), [(9, r"masks hold \[9\]"), (1, "masks do not belong to their images")]
)
def test_who_loads_something_else_is_void(tmp_path, value, reason):
    job = Job("pictures", "work", crop=8, batch_size=2)
    with pytest.raises(VoidError, match=reason):
        prepare(Wrong(tmp_path / "log.txt", value), job, job, num_classes=2)


def test_a_python_that_is_not_there_is_named(tmp_path):
    plan = Plan(work=tmp_path, peers_python="/no/python", core=0, against=choose("files-pil"), num_samples=2)
    with pytest.raises(
        ConfigError, match=r"--peers-python \(/no/python\) does not run .* give the python of"
    ):
        run_case(Case(64, 48, 32), Pictures(None, None, None), plan)


def test_a_whole_run_from_pictures_to_ratios(tmp_path):
    nobody = Contender("nobody", "nobody", "tests.benchmarks.peers.no_such_module", ("no-such-package",))
    plan = Plan(
        work=tmp_path,
        peers_python=sys.executable,
        core=0,
        against=(*choose("files-pil"), nobody),
        batch_size=4,
        num_samples=16,
        num_rounds=2,
        seconds=0.01,
        split=True,
        workers=(1,),
    )
    result = run_case(Case(64, 48, 32), Pictures(None, None, None), plan)
    assert list(result.measured.void) == ["nobody"]
    assert "no_such_module" in result.measured.void["nobody"]
    assert [sorted(one) for one in result.measured.rounds] == [["files-pil", OURS.name]] * 2
    assert result.measured.ratio(OURS.name, "files-pil").median > 0
    assert result.versions["files-pil"]["pillow"]
    assert sum(result.split.values()) > 0
    assert list(result.workers.rounds[0]) == ["1 core", "1 workers"]
