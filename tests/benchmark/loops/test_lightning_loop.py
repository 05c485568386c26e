import pytest

from tests.benchmark.loops.looped import check_learning
from unetdist.benchmark.loops.lightning_loop import train


@pytest.mark.parametrize("word", ["default", "best"])
@pytest.mark.filterwarnings("ignore")
def test_it_learns(tmp_path, word):
    pytest.importorskip("lightning")
    check_learning(train, tmp_path, word)
