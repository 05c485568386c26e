from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of
from unetdist.cli import settings
from unetdist.commands.train import describe_end
from unetdist.distributed.collectives import World
from unetdist.errors import ConfigError
from unetdist.storage.checkpoint_files import CheckpointFolder
from unetdist.storage.folders import open_folder
from unetdist.train.config import SETTINGS_FILE, CheckpointConfig, Config
from unetdist.train.run_folder import claim_run_folder, name_of_run


def values(tmp_path, **sections):
    config = settings.from_mapping(Config, settings_of(tmp_path / "t", None, tmp_path, **sections))
    return settings.to_mapping(config)


def claim(folder, values, /, **checkpoint):
    cfg = CheckpointConfig(**checkpoint)
    return claim_run_folder(folder, values, cfg=cfg, world=World(), defaults=settings.defaults(Config))[1]


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
    config = settings.parse(Config, ["--config", str(tmp_path / "run" / SETTINGS_FILE)], prog="", description="")
    assert settings.to_mapping(config) == values(tmp_path)


def test_checkpoints_may_be_in_the_folder_of_the_run(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        claim(tmp_path / "run", values(tmp_path), folder=str(folder))


def test_the_same_settings_continue_a_run(begun, tmp_path):
    claim(begun, values(tmp_path))


def test_a_setting_that_the_version_of_the_run_did_not_have_was_its_default(begun, tmp_path):
    old = values(tmp_path)
    del old["optim"]["layer_decay"], old["augment"]["cutmix"], old["checkpoint"]
    (begun / SETTINGS_FILE).write_text(settings.to_yaml(old))
    with pytest.raises(ConfigError, match=r"was started with optim\.layer_decay: 1\.0, now it is 0\.9"):
        claim(begun, values(tmp_path, optim={"layer_decay": 0.9}))
    claim(begun, values(tmp_path))


def test_a_run_that_still_names_a_setting_that_is_gone_goes_on(begun, tmp_path):
    old = values(tmp_path)
    old["data"]["allow_pipe"] = False
    (begun / SETTINGS_FILE).write_text(settings.to_yaml(old))
    words = ["--config", str(begun / SETTINGS_FILE), "--data.num_workers", "1"]
    config = settings.parse(Config, words, prog="", description="")
    assert config.data.num_workers == 1
    claim(begun, settings.to_mapping(config))
    assert "allow_pipe" not in (begun / SETTINGS_FILE).read_text()
    old["data"]["allow_pipe"] = True
    with pytest.raises(ConfigError, match=r"data\.allow_pipe \(True\) no longer exists; remove it"):
        settings.from_mapping(Config, old)


@pytest.mark.parametrize(
    "changed",
    [
        {"trainer": {"global_batch_size": 4, "max_steps": 4, "log_every": 1}},
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
            "run was started with seed: 0, now it is 7; continuing would mix two runs. Choose another --name",
        ),
        ({"optim": {"lr": 0.5}}, "started with optim.lr: 0.001, now it is 0.5"),
        ({"data": {"train": "t", "lanes": 8}}, "started with data.lanes: 64, now it is 8"),
        (
            {"seed": 7, "optim": {"lr": 0.5}},
            "started with optim.lr: 0.001, now it is 0.5, and seed: 0, now it is 7; .* keep optim.lr, seed",
        ),
    ],
)
def test_settings_that_change_the_weights_are_refused(begun, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        claim(begun, values(tmp_path, **changed))


def test_never_resume_refuses_a_run_but_not_an_empty_folder(begun, tmp_path):
    claim(tmp_path / "new", values(tmp_path), resume="never")
    with pytest.raises(ConfigError, match=r"holds a run, and checkpoint.resume is never; choose another --name"):
        claim(begun, values(tmp_path), resume="never")


def test_without_a_checkpoint_a_run_may_begin_anew(tmp_path):
    claim(tmp_path / "run", values(tmp_path))
    claim(tmp_path / "run", values(tmp_path, seed=3))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"config.yaml cannot be written \(.+\); give --runs_dir a folder that"):
        claim(tmp_path / "runs" / "run", values(tmp_path))


def test_a_change_may_be_accepted_and_is_told(begun, tmp_path, caplog):
    changed = values(tmp_path, seed=7, optim={"lr": 0.5})
    with pytest.raises(ConfigError, match=r"or accept the change with --checkpoint.allow_changes '\[optim.lr, seed\]'"):
        claim(begun, changed)
    with pytest.raises(ConfigError, match=r"started with seed: 0, now .*allow_changes '\[optim.lr, seed\]'"):
        claim(begun, changed, allow_changes=("optim.lr",))
    claim(begun, changed, allow_changes=("optim.lr", "seed"))
    assert caplog.messages == [
        f"{begun} was started with {change}: accepted because of checkpoint.allow_changes"
        for change in ("optim.lr: 0.001, now it is 0.5", "seed: 0, now it is 7")
    ]
    claim(begun, changed)  # the change is the run's own from now on


def test_settings_are_kept_beside_checkpoints_that_have_a_place_of_their_own(tmp_path):
    """A run may be continued on a machine that has nothing but these."""
    shared = tmp_path / "shared"
    claim(tmp_path / "one" / "run", values(tmp_path), folder=str(shared))
    (shared / "run" / "latest").write_text("step_00000001")
    claim(tmp_path / "other" / "run", values(tmp_path), folder=str(shared))
    assert (tmp_path / "other" / "run" / SETTINGS_FILE).is_file()
    with pytest.raises(ConfigError, match="started with seed: 0, now it is 7"):
        claim(tmp_path / "third" / "run", values(tmp_path, seed=7), folder=str(shared))


def test_checkpoints_without_settings_are_not_touched_either_where_resume_is_never(begun, tmp_path):
    (begun / SETTINGS_FILE).unlink()
    claim(begun, values(tmp_path))
    (begun / SETTINGS_FILE).unlink()
    with pytest.raises(ConfigError, match="checkpoint.resume is never"):
        claim(begun, values(tmp_path), resume="never")


def test_settings_that_were_spoilt_are_named(begun, tmp_path):
    (begun / SETTINGS_FILE).write_text("name: [")
    with pytest.raises(ConfigError, match="run/config.yaml: not readable as YAML"):
        claim(begun, values(tmp_path))


def with_size(tmp_path, size):
    """Settings that ask for this micro-batch size of a global batch of 16."""
    trainer = {"global_batch_size": 16, "max_steps": 4, "log_every": 2, "micro_batch_size": size}
    return values(tmp_path, trainer=trainer)


def save_facts(folder, facts):
    CheckpointFolder(open_folder(folder / "checkpoints"), keep_last=1).write(1, b"", facts)


@pytest.mark.parametrize("first", [None, 2])
@pytest.mark.parametrize("asked", [None, 2])
def test_a_run_keeps_its_numbers_whether_its_settings_name_them_or_not(tmp_path, first, asked):
    numbers = {"micro_batch_size": 2, "num_threads": 3}
    assert claim(tmp_path / "run", with_size(tmp_path, first)) == {}
    save_facts(tmp_path / "run", {"fixed": numbers})
    assert claim(tmp_path / "run", with_size(tmp_path, asked)) == numbers


@pytest.mark.parametrize("first", [None, 2])
def test_another_micro_batch_size_needs_leave(tmp_path, first):
    claim(tmp_path / "run", with_size(tmp_path, first))
    save_facts(tmp_path / "run", {"fixed": {"micro_batch_size": 2}})
    message = r"started with trainer\.micro_batch_size: 2, now it is 4.+allow_changes '\[trainer\.micro_batch_size\]'"
    with pytest.raises(ConfigError, match=message):
        claim(tmp_path / "run", with_size(tmp_path, 4))
    claim(tmp_path / "run", with_size(tmp_path, 4), allow_changes=("trainer.micro_batch_size",))


def test_a_run_of_an_older_version_keeps_the_micro_batch_size_of_its_settings(tmp_path):
    claim(tmp_path / "run", with_size(tmp_path, 2))
    save_facts(tmp_path / "run", {})
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch_size: 2, now it is 4"):
        claim(tmp_path / "run", with_size(tmp_path, 4))
    assert claim(tmp_path / "run", with_size(tmp_path, None)) == {"micro_batch_size": 2}


@pytest.mark.parametrize("asked", [None, 4])
def test_without_the_setting_an_older_version_kept_no_micro_batch_size(tmp_path, asked):
    claim(tmp_path / "run", with_size(tmp_path, None))
    save_facts(tmp_path / "run", {})
    assert claim(tmp_path / "run", with_size(tmp_path, asked)) == {"micro_batch_size": None}


def claim_on_each(folder: Path, seed: int) -> Any:
    settings = {"seed": seed, "trainer": {"micro_batch_size": None}}
    try:
        world = World(rank=dist.get_rank(), world_size=2)
        return claim_run_folder(folder, settings, cfg=CheckpointConfig(), world=world, defaults={})[1]
    except ConfigError as error:
        return str(error)


def test_all_ranks_hear_what_rank_zero_finds(begun):
    (begun / SETTINGS_FILE).write_text("seed: 0\ntrainer:\n  micro_batch_size: 2\n")
    assert run_ranks(claim_on_each, 2, begun, 0) == 2 * [{"micro_batch_size": 2}]
    one, other = run_ranks(claim_on_each, 2, begun, 7)
    assert one == other
    assert "started with seed: 0, now it is 7" in one


JOB = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def no_job(monkeypatch):
    for name in JOB:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("WANDB_SWEEP_ID", "WANDB_RUN_ID", "SLURM_ARRAY_JOB_ID"), "s1-r1"),
        (("WANDB_RUN_ID",), "r1"),
        (("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), "77_3"),
    ],
)
def test_a_trial_has_the_same_name_when_it_starts_again(no_job, monkeypatch, given, name):
    for variable in given:
        monkeypatch.setenv(variable, JOB[variable])
    assert [name_of_run("auto", World()) for _ in range(2)] == [name, name]
    assert name_of_run("mine", World()) == "mine"


def test_an_automatic_name_can_be_that_of_a_folder(no_job, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "..my run (2)")
    name = name_of_run("auto", World())
    assert settings.from_mapping(Config, {**values(tmp_path), "name": name}).name == name


def named_twice():
    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    return [name_of_run("auto", world) for _ in range(2)]


def test_all_ranks_find_one_name_that_no_other_run_has(no_job):
    one, other = run_ranks(named_twice, 2)
    assert one == other
    assert len({*one}) == 2


def test_another_name_is_advised_where_trials_share_one(begun, tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.lr: .* --name \(auto"):
        claim(begun, values(tmp_path, optim={"lr": 0.5}))


def test_a_stopped_run_says_its_automatic_name(tmp_path):
    """The same command would begin another run."""
    config = settings.from_mapping(Config, {**values(tmp_path), "name": "auto"})
    state = SimpleNamespace(step=3)
    assert "--name 2026-ab" in describe_end(config, tmp_path / "2026-ab", state, finished=False)
    assert "--name" not in describe_end(replace(config, name="mine"), tmp_path / "mine", state, finished=False)
