import importlib.util

import pytest

from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.tracking import TrackingConfig
from unetdist.tracking.dashboard import check_installed
from unetdist.train.config import Config


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
    for given, shown in (("wandbb", "wandbb"), ("none,wandb", "none, wandb"), ([], ""), ("", "")):
        with pytest.raises(ConfigError, match=rf"tracking.tracker \({shown}\) {choices}"):
            TrackingConfig(tracker=given)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("wandb", "wandb"), ("mlflow", r"-e '.\[mlflow\]'"), ("trackio", r"-e '.\[trackio\]'")],
)
def test_missing_package_is_told_before_the_training(monkeypatch, name, remedy):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = (
        rf"tracking.tracker \({name}\) must be installed; run pip install {remedy}, or use --tracking.tracker"
    )
    with pytest.raises(ConfigError, match=text):
        check_installed(TrackingConfig(tracker=name))
    check_installed(TrackingConfig(tracker="none"))
