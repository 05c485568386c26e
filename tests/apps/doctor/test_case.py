from tests.apps.doctor.cases import case_of
from unetdist.apps.doctor.case import Measured


def test_a_case_knows_its_run_and_begins_with_nothing_measured(tmp_path):
    case = case_of(tmp_path)
    assert case.run_dir == tmp_path / "runs" / "tiny"
    assert list(case.batches) == []
    assert not any(case.measured.to_mapping().values())
    assert Measured(reduce=[(4, 0.5)]).to_mapping()["reduce"] == [(4, 0.5)]
