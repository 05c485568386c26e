import pytest

from tests.benchmarks.loops.lightning_loop import train
from tests.benchmarks.loops.looped import check_learning


@pytest.mark.parametrize("word", ["default", "best"])
@pytest.mark.filterwarnings("ignore")
def test_it_learns(tmp_path, word):
    pytest.importorskip("lightning")
    check_learning(train, tmp_path, word)
