from pathlib import Path

from tests.benchmarks.contenders import ROOT
from tests.benchmarks.loops.everybody import EVERYBODY, OURS


def test_everybody_has_a_name_of_its_own_and_a_module():
    everybody = (OURS, *EVERYBODY)
    assert len({contender.name for contender in everybody}) == len(everybody)
    for contender in everybody:
        assert " " not in contender.name  # the precision follows
        assert Path(ROOT, *contender.module.split(".")).with_suffix(".py").is_file()
