from tests.benchmarks.peers.checked import check_contender


def test_it_loads_what_was_asked_for(tmp_path):
    check_contender("litdata", tmp_path, "litdata")
