import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.benchmarks.loops.accelerate_loop import train
from tests.benchmarks.loops.looped import check_learning


@pytest.fixture(autouse=True)
def fresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("word", ["default", "best"])
def test_it_learns(tmp_path, word):
    check_learning(train, tmp_path, word)
