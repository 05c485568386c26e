import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.benchmarks.loops.looped import losses_of, small_job
from tests.benchmarks.loops.ours import changed, train
from unetdist.errors import TrainingError
from unetdist.train.performance import FastPath
from unetdist.train.share import LossShare


@pytest.fixture(autouse=True)
def fresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize(("word", "on_device"), [("auto", False), ("off", False), ("auto", True)])
def test_it_learns(tmp_path, word, on_device):
    losses = losses_of(train, small_job(tmp_path, shards=True, on_device=on_device), word)
    assert 0.5 < losses[0] < 3
    assert sum(losses[-3:]) < sum(losses[:3])
    assert not list((tmp_path / "work").iterdir())


def test_parts_of_the_fast_path_are_given_or_taken(monkeypatch):
    chosen = FastPath(autotunes=True, reasons=("not compiled, for training takes too short",))
    for words, compiler, graphs in (
        ([], None, False),
        (["graphs"], "inductor", True),
        (["no-graphs"], "inductor", False),
    ):
        monkeypatch.setattr("sys.argv", ["loop", "auto", *words])
        path = changed(chosen)
        assert (path.autotunes, path.compiler, path.cuda_graphs) == (True, compiler, graphs)


def test_what_was_not_measured_as_asked_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(LossShare, "prove", lambda *_, **__: "no kernel")
    with pytest.raises(TrainingError, match="not compiled: no kernel"):
        losses_of(train, small_job(tmp_path, shards=True), "auto", "graphs")
