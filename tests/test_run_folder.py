import pytest

from tests.synthetic import settings_of
from unetdist import settings
from unetdist.checkpoint import CheckpointConfig
from unetdist.config import Config
from unetdist.distributed import World
from unetdist.errors import ConfigError
from unetdist.run_folder import SETTINGS_FILE, claim_run_folder


def values(tmp_path, **sections):
    config = settings.from_mapping(Config, settings_of(tmp_path / "t", None, tmp_path, **sections))
    return settings.to_mapping(config)


def claim(folder, values, **checkpoint):
    claim_run_folder(folder, values, cfg=CheckpointConfig(**checkpoint), world=World())


@pytest.fixture
def begun(tmp_path):
    """Folder of a run that has a checkpoint."""
    folder = tmp_path / "run"
    claim(folder, values(tmp_path))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest").write_text("step_00000001")
    return folder


def test_the_resolved_settings_are_saved_and_can_be_given_again(tmp_path):
    claim(tmp_path / "run", values(tmp_path))
    config = settings.parse(
        Config, ["--config", str(tmp_path / "run" / SETTINGS_FILE)], prog="", description=""
    )
    assert settings.to_mapping(config) == values(tmp_path)


def test_the_same_settings_continue_a_run(begun, tmp_path):
    claim(begun, values(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"trainer": {"global_batch_size": 4, "max_steps": 4, "log_every": 1, "micro_batch_size": 1}},
        {"data": {"train": "moved", "num_workers": 3}},
        {"checkpoint": {"keep_last": 5}},
        {"data": {"train": "t", "on_bad_sample": "blank", "max_bad_samples": 7}},  # as errors advise
    ],
)
def test_settings_that_do_not_change_the_weights_may_change(begun, tmp_path, changed):
    claim(begun, values(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"seed": 7},
            "run was begun with seed: 0, now it is 7; continuing would mix two runs. Choose another --name",
        ),
        ({"optim": {"lr": 0.5}}, "begun with optim.lr: 0.001, now it is 0.5"),
        ({"data": {"train": "t", "lanes": 8}}, "begun with data.lanes: 64, now it is 8"),
        (
            {"seed": 7, "optim": {"lr": 0.5}},
            "begun with optim.lr: 0.001, now it is 0.5, and seed: 0, now it is 7; .* keep optim.lr, seed",
        ),
    ],
)
def test_settings_that_change_the_weights_are_refused(begun, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        claim(begun, values(tmp_path, **changed))


def test_never_resume_refuses_a_run_but_not_an_empty_folder(begun, tmp_path):
    claim(tmp_path / "new", values(tmp_path), resume="never")
    with pytest.raises(
        ConfigError, match=r"holds a run, and checkpoint.resume is never; choose another --name"
    ):
        claim(begun, values(tmp_path), resume="never")


def test_without_a_checkpoint_a_run_may_begin_anew(tmp_path):
    claim(tmp_path / "run", values(tmp_path))
    claim(tmp_path / "run", values(tmp_path, seed=3))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(
        ConfigError, match=r"config.yaml cannot be written \(.+\); give --runs_dir a folder that"
    ):
        claim(tmp_path / "runs" / "run", values(tmp_path))
