import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.benchmark.loops.looped import losses_of, small_job
from unetdist.benchmark.loops.ours import train


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
