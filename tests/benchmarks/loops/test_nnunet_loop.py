import pytest

from tests.benchmarks.loops.looped import check_learning
from tests.benchmarks.loops.nnunet_loop import train


@pytest.mark.parametrize("word", ["default", "best"])
def test_it_learns(tmp_path, word):
    check_learning(train, tmp_path, word)
