from types import SimpleNamespace

import pytest

from tests.apps.doctor.cases import case_of
from unetdist.apps.doctor import forecast
from unetdist.train.schedule import Schedule


@pytest.fixture
def case(tmp_path):
    case = case_of(tmp_path)
    schedule = Schedule(max_steps=1000, eval_every=300, save_every=100, log_every=10)
    case.trainer = SimpleNamespace(schedule=schedule, validator=object())
    case.measured.first_s, case.measured.step_s, case.measured.validation_s = 10.0, 7.2, 450.0
    return case


def test_hours_are_steps_and_validations(case):
    (found,) = forecast.judge_time(case, [])
    assert found.fact.startswith("2.5 h (1,000 steps 2.0 h, 4 validations 30.0 min): begun now, done on ")
    assert case.measured.run_s == pytest.approx(10 + 7200 + 1800)


def test_a_validation_that_could_not_be_timed_is_missing(case):
    case.measured.validation_s = None
    (found,) = forecast.judge_time(case, [])
    assert (found.level, found.fact.endswith(", without its validations")) == ("warning", True)


@pytest.mark.parametrize(("speed", "level"), [(1e6, "ok"), (1e3, "warning")])
def test_a_checkpoint_is_to_be_written_before_the_next(case, speed, level):
    case.measured.checkpoint_bytes, case.measured.write_bytes_s = 10**6, speed
    (found,) = forecast.judge_checkpoints(case, [])
    assert found.level == level
    assert found.fact.startswith("one of 1.0 MB every 12.0 min, written beside the training in ")
