import math

import numpy as np
import pytest

from tests.apps.ablation.plans import finish, plan_of
from unetdist.apps.ablation.outcome import paired_t_test, summarise, t_beyond
from unetdist.cli import settings
from unetdist.storage.files import write_text
from unetdist.train.run_folder import SETTINGS_FILE


@pytest.fixture
def plan(tmp_path):
    return plan_of(tmp_path)


def by_name(plan):
    return {run.config.name: run for run in plan.runs}


def test_seeds_are_paired_with_those_of_the_first_variant(plan):
    runs = by_name(plan)
    for name, miou in (("plain_0", 0.5), ("plain_1", 0.6), ("group_1", 0.65), ("group_2", 0.8)):
        finish(runs[name], miou, seconds=10 * miou)
    plain, group = summarise(plan)
    assert (plain.variant, plain.mious, plain.num_seeds) == ("plain", {0: 0.5, 1: 0.6}, 3)
    assert plain.mean == pytest.approx(0.55)
    assert plain.spread == pytest.approx(0.1 / math.sqrt(2))
    assert plain.seconds == pytest.approx(5.5)
    assert plain.differences == ()
    assert group.mious == {1: 0.65, 2: 0.8}
    assert group.differences == (pytest.approx(0.05),)
    assert math.isnan(group.p_over_seeds)
    assert group.changes == {"model.norm": "group"}


def test_nothing_is_known_before_the_first_run(plan):
    for summary in summarise(plan):
        assert math.isnan(summary.mean)
        assert math.isnan(summary.spread)
        assert summary.seconds is None
        told = summary.to_mapping()
        assert (told["mean"], told["difference"], told["over_images"]) == (None, None, None)


def test_a_run_with_other_settings_is_not_counted(plan):
    run = plan.runs[0]
    finish(run, 0.5)
    values = settings.to_mapping(run.config)
    values["optim"]["lr"] = 0.123
    write_text(run.folder / SETTINGS_FILE, settings.to_yaml(values))
    assert summarise(plan)[0].mious == {}


def test_images_are_compared_over_the_seeds_that_both_have(plan):
    runs = by_name(plan)
    wrong, right = np.array([[8, 2], [2, 8]]), np.array([[10, 0], [0, 10]])
    finish(runs["plain_0"], 0.6, confusions=np.stack([wrong] * 12))
    assert summarise(plan)[1].over_images is None
    finish(runs["group_0"], 1.0, confusions=np.stack([right] * 12))
    finish(runs["group_1"], 1.0, confusions=np.stack([wrong] * 12))
    found = summarise(plan)[1].over_images
    assert (found.miou_a, found.miou_b, found.num_samples) == (pytest.approx(2 / 3), 1.0, 12)
    assert found.p_value < 0.01


@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    [
        (1, 12.706, 0.05),
        (2, 4.303, 0.05),
        (3, 3.182, 0.05),
        (4, 2.776, 0.05),
        (9, 3.250, 0.01),
        (10, 1.812, 0.1),
    ],
)
def test_students_distribution_is_that_of_the_tables(freedom, t, p):
    assert t_beyond(t, freedom) == pytest.approx(p, rel=2e-3)
    assert t_beyond(-t, freedom) == t_beyond(t, freedom)
    assert t_beyond(0.0, freedom) == 1


def test_paired_differences():
    assert paired_t_test([0.01, 0.02, 0.03]) == pytest.approx(0.0742, abs=1e-4)  # t = 3.464 of 2
    assert math.isnan(paired_t_test([0.1]))
    assert paired_t_test([0.0, 0.0]) == 1
    assert paired_t_test([0.1, 0.1]) == 0
