import importlib.util
import math

import numpy as np
import pytest

from tests.tracking.samples import PALETTE, REPORT, picture, shown
from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.evaluation.examples import ScoredImage
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.dashboard import Dashboard, TrackedRun, check_installed
from unetdist.train.config import Config


@pytest.mark.parametrize(
    ("miou", "is_worst", "caption"),
    [(0.345, False, "day/a, mIoU 34.5 %"), (0.0, True, "worst: day/a, mIoU 0.0 %"), (math.nan, False, "day/a")],
)
def test_a_caption_says_how_good_the_image_is(miou, is_worst, caption):
    empty = np.zeros((1, 1), np.uint8)
    assert ScoredImage(0, miou, empty, empty, empty, is_worst, "day/a").caption == caption


@pytest.fixture
def run(tmp_path):
    return TrackedRun(TrackingConfig(), tmp_path, "r", {}, PALETTE, step=0)


def test_a_restart_finds_its_id_again(run):
    first = run.own_id("wandb_id")
    assert len(first) == 8
    assert run.own_id("wandb_id") == first
    assert run.own_id("other_id") != first


def test_panels_have_one_size(run):
    class Plain(Dashboard):
        def send(self, row):
            pass

        def close(self, facts, best):
            pass

    images = Plain(run).drawn(shown(picture("a"), picture("b", 40, 9)))
    assert list(images) == ["val/confusion", "val/pictures/0", "val/pictures/1"]
    (heat_map, _), (small, caption), (other, _) = images.values()
    assert small.shape == other.shape
    assert small.dtype == heat_map.dtype == np.uint8
    assert caption.startswith("a")
    assert list(Plain(run).drawn(REPORT)) == ["val/confusion"]
    assert Plain(run).drawn(None) == {}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("wandb", ("wandb",)),
        ("none", ()),
        ("wandb,tensorboard", ("wandb", "tensorboard")),
        ("mlflow, trackio, mlflow", ("mlflow", "trackio")),
        (["tensorboard", "wandb"], ("tensorboard", "wandb")),
    ],
)
def test_one_or_several_dashboards(given, names):
    assert TrackingConfig(tracker=given).dashboards == names


def test_several_from_yaml_and_from_the_command_line():
    assert settings.defaults(Config)["tracking"]["tracker"] == "wandb"
    for given in ("[mlflow, tensorboard]", "mlflow,tensorboard"):
        parsed = settings.parse(TrackingConfig, ["--tracker", given], prog="x", description="")
        assert parsed.dashboards == ("mlflow", "tensorboard")


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"tracking.num_pictures \(-1\) must be at least 0; use 0"):
        TrackingConfig(num_pictures=-1)
    with pytest.raises(ConfigError, match=r"tracking.project \(''\) must be a name; use unetdist"):
        TrackingConfig(project="")
    choices = "must be one or several of wandb, trackio, tensorboard, mlflow, or none; use wandb"
    for given, names in (("wandbb", "wandbb"), ("none,wandb", "none, wandb"), ([], ""), ("", "")):
        with pytest.raises(ConfigError, match=rf"tracking.tracker \({names}\) {choices}"):
            TrackingConfig(tracker=given)


@pytest.mark.parametrize(
    ("name", "remedy"), [("wandb", "wandb"), ("mlflow", r'"unetdist\[mlflow\]"'), ("trackio", r'"unetdist\[trackio\]"')]
)
def test_missing_package_is_told_before_the_training(monkeypatch, name, remedy):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = rf"tracking.tracker \({name}\) must be installed; run pip install {remedy}, or use --tracking.tracker"
    with pytest.raises(ConfigError, match=text):
        check_installed(TrackingConfig(tracker=name))
    check_installed(TrackingConfig(tracker="none"))
