import pytest
import torch

from tests.apps.doctor.cases import case_of, findings_of, only, write_data
from unetdist.apps.doctor import data, scoring, training
from unetdist.apps.doctor.command import leave
from unetdist.apps.doctor.scoring import Laps


def test_a_validation_is_tried_and_its_whole_predicted(tmp_path):
    write_data(tmp_path)
    case = case_of(tmp_path)
    case.budget_s = 30.0  # to its end
    found = findings_of(case, *data.CHECKS, *training.CHECKS[:1], *scoring.CHECKS)
    assert " for 4 images, " in only(found, "validation").fact
    whole_s = case.measured.validation_s
    case.budget_s = 0.0  # one batch
    findings_of(case, *scoring.CHECKS)
    assert case.measured.validation_s > 0
    assert whole_s > 0
    case.measured.step_s = 1e-9
    rank = {"seconds": 5.0, "samples": 4, "memory": {"device": 0, "device_total": 0, "host": 1, "free": 9}}
    found, _ = scoring.judge_validation(case, [rank])
    assert (found.level, found.remedy) == ("warning", "a larger trainer.eval_every, or validation.batch_size")
    leave(case)


def test_without_a_validation_set_nothing_is_tried(tmp_path):
    assert findings_of(case_of(tmp_path), *scoring.CHECKS) == []


@pytest.mark.parametrize(
    ("times", "seconds"),
    [([0.0, 9.0, 10.0, 11.0], 100.0), ([0.0, 9.0], 900.0), ([0.0], 0.0)],
)
def test_the_first_lap_warms_up(times, seconds):
    laps = Laps(1.0, torch.device("cpu"))
    laps.times = times
    assert laps.seconds_of(100) == pytest.approx(seconds)


def test_one_batch_is_always_scored():
    laps = Laps(0.0, torch.device("cpu"))
    assert [laps(), laps()] == [False, True]
