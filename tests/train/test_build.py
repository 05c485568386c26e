import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from tests.distributed.launcher import run_ranks
from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.distributed.collectives import World
from unetdist.errors import ConfigError, DataError
from unetdist.storage.files import hold_lock
from unetdist.train import build as wiring
from unetdist.train.build import (
    build_trainer,
    channel_statistics,
    first_native_epoch,
    open_training_set,
    promise,
    warn_of_settings,
)
from unetdist.train.config import Config, TrainerConfig
from unetdist.train.performance import PLAIN, FastPath, agree_on_threads
from unetdist.train.run_folder import LOCK_FILE
from unetdist.train.run_status import read_status
from unetdist.train.trainer import Schedule


def build(tmp_path, **sections):
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs", **sections)
    return build_trainer(settings.from_mapping(Config, values))


def test_grey_statistics_are_the_luma_of_the_colours(tmp_path):
    manifest = write_shards(tmp_path / "train", 4)
    assert channel_statistics(manifest, 3) == (list(manifest.mean), list(manifest.std))
    (mean,), _ = channel_statistics(manifest, 1)
    red, green, blue = manifest.mean
    assert mean == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue)
    assert [len(values) for values in channel_statistics(manifest, 4)] == [4, 4]


def test_two_channels_are_no_image(tmp_path):
    write_shards(tmp_path / "train", 4)
    with pytest.raises(ConfigError, match=r"model.in_channels \(2\) must be 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\)"):
        build(tmp_path, model={"in_channels": 2})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"trainer": {"global_batch_size": 8}}, r"trainer.global_batch_size \(8\).* 4 training samples"),
        ({"trainer": {"eval_every": 50, "max_steps": 9}}, r"trainer.eval_every \(50\) .* 9 steps"),
        ({"augment": {"crop_size": [512, 512]}}, r"augment.crop_size \(\[512, 512\]\)"),
        ({"data": {"val": "TRAIN"}}, "data.val is data.train"),
        ({"optim": {"lr": 10}}, r"optim.lr \(10.0\)"),
        ({}, None),
    ],
)
def test_settings_that_are_hardly_meant_are_warned_of(tmp_path, caplog, changed, told):
    manifest = write_shards(tmp_path / "train", 4)
    train = str(tmp_path / "train")
    given = {"data": {"train": train, "val": str(tmp_path / "val")}, "trainer": {"global_batch_size": 2}}
    given = json.loads(json.dumps(settings.laid_over(given, changed)).replace("TRAIN", train))
    config = settings.from_mapping(Config, given)
    warn_of_settings(config, manifest, config.trainer.max_steps or 100)
    assert len(caplog.messages) == (told is not None)
    assert told is None or re.search(told, caplog.messages[0])


def test_one_class_is_nothing_to_learn(tmp_path):
    manifest = write_shards(tmp_path / "train", 4)
    counts = {name: getattr(manifest, name)[:1] for name in ("class_pixels", "class_images", "presence_pixels")}
    records = tuple(record for record in manifest.palette_records if record["index"] in (0, None))
    replace(manifest, palette_records=records, **counts).save(tmp_path / "train")
    with pytest.raises(DataError, match="train: its masks have one class"):
        build(tmp_path)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_models_train(tmp_path, channels):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 2)
    with build(tmp_path, model={"widths": [4, 8], "in_channels": channels}) as trainer:
        assert trainer.fit()


def test_a_run_without_validation_keeps_its_last_weights(tmp_path):
    write_shards(tmp_path / "train", 4)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    assert (tmp_path / "runs" / "tiny" / "last" / "model.safetensors").exists()
    assert not (tmp_path / "runs" / "tiny" / "best").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": {"warmup_steps": 4}}, r"optim.warmup_steps \(4\) must be below the 4 steps of the run"),
        ({"augment": {"native_epochs": 9}}, r"augment.native_epochs \(9\) must be at most the \d+ epochs of the run"),
        ({"trainer": {"micro_batch_size": 3}}, r"global_batch_size \(4\) must be divisible by"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_tracker_begins(tmp_path, changed, message):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 2)
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, tracking={"tracker": "wandb", "mode": "offline"}, **changed)
    with hold_lock(tmp_path / "runs" / "tiny" / LOCK_FILE):  # nobody has it any more
        pass
    assert not (tmp_path / "runs" / "tiny" / "wandb").exists()


@pytest.mark.parametrize(
    ("world_size", "asked", "kept", "size"),
    [
        (1, None, None, 16),
        (4, None, None, 4),
        (8, None, 2, 2),
        (1, None, 2, 2),  # not 16, which this process could have
        (8, 1, 2, 1),
        (8, None, 4, 2),  # 8 processes cannot have 4 each
    ],
)
def test_the_micro_batch_size_is_asked_for_or_kept_or_as_large_as_can_be(
    tmp_path, caplog, world_size, asked, kept, size
):
    write_shards(tmp_path / "train", 16)
    trainer = {"global_batch_size": 16, "micro_batch_size": asked}
    config = settings.from_mapping(Config, settings_of(tmp_path / "train", None, tmp_path, trainer=trainer))
    assert open_training_set(config, World(world_size=world_size), kept).micro_batch_size == size
    told = [message for message in caplog.messages if "micro_batch_size" in message]
    assert len(told) == int((asked, kept) == (None, 4))
    for message in told:
        assert re.search(r"trainer\.micro_batch_size was 4\b.+\b2\b.+\b8\b.+up to rounding", message)
    open_training_set(config, World(rank=1, world_size=world_size), kept)
    assert len(caplog.messages) == len(told)  # the other ranks say nothing


def test_a_micro_batch_size_that_these_processes_cannot_have_may_be_left_out(tmp_path):
    write_shards(tmp_path / "train", 4)
    with pytest.raises(ConfigError, match=r"micro_batch_size \(3\); use 3 or 6, or --trainer\.micro_batch_size null\."):
        build(tmp_path, trainer={"micro_batch_size": 3})


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("size", "norm", "reproducible", "world", "same"),
    [
        (2, "batch", False, World(world_size=4), "the same bits on 1, 2, 4, 8 processes"),
        (16, "group", False, World(), "the same bits on 1 process:"),
        (4, "batch", False, World(world_size=3), "up to rounding on 3, the same bits on 1, 2, 4 processes"),
        (2, "sync_batch", True, World(), "up to rounding"),
        (2, "batch", False, World(device=CUDA), "up to rounding"),
        (2, "batch", True, World(device=CUDA), "the same bits on 1, 2, 4, 8 processes"),
    ],
)
def test_a_run_says_where_its_bits_are_the_same(tmp_path, monkeypatch, size, norm, reproducible, world, same):
    trainer = {"global_batch_size": 16, "reproducible": reproducible}
    sections = {"trainer": trainer, "model": {"norm": norm}}
    config = settings.from_mapping(Config, settings_of(tmp_path, None, tmp_path, **sections))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    told = promise(config, world, size)
    assert same in told
    assert f"trainer.micro_batch_size {size}" in told
    assert ("bits" in told) == ("bits" in same)
    assert ("1 thread per process" in told) == ("bits" in same and world.device != CUDA)


def test_as_many_processes_as_micro_batches_have_the_same_bits_too(tmp_path):
    values = settings_of(tmp_path, None, tmp_path, trainer={"global_batch_size": 12})
    config = settings.from_mapping(Config, values)
    assert "the same bits on 1, 2, 4, 12 processes" in promise(config, World(world_size=12), 1)
    assert "up to rounding on 6, the same bits on 1, 2, 4, 12" in promise(config, World(world_size=6), 1)


def threads_on_each(kept: int | None) -> tuple[int, int]:
    torch.set_num_threads(3 - dist.get_rank())
    return agree_on_threads(kept), torch.get_num_threads()


def test_all_processes_have_the_threads_that_the_run_kept_or_the_fewest_of_any():
    assert run_ranks(threads_on_each, 2, None) == [(2, 2), (2, 2)]
    assert run_ranks(threads_on_each, 2, 3) == [(3, 3), (3, 3)]


def fixed_on_each(values: dict[str, Any]) -> dict[str, int]:
    torch.set_num_threads(1 + dist.get_world_size())
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.stop.received = 15
        trainer.fit()
        return {**trainer.fixed, "really": torch.get_num_threads(), "micro_batches": trainer.step.num_micro_batches}


def test_a_run_keeps_its_numbers_on_another_number_of_processes(tmp_path):
    write_shards(tmp_path / "train", 9)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs")
    numbers = {"micro_batch_size": 2, "num_threads": 3, "really": 3, "micro_batches": 2}
    for world_size in (2, 1):
        assert run_ranks(fixed_on_each, world_size, values) == world_size * [numbers]


def compiled_in(run_dir):
    """What the log lines of a run say of its compiler."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["time/is_compiled"] for line in lines if "time/is_compiled" in line]


def test_the_fast_path_gives_the_losses_of_the_plain_one(tmp_path, monkeypatch):
    write_shards(tmp_path / "train", 9)
    write_shards(tmp_path / "val", 2)
    sections = {
        "augment": {"scale_min": 0.7, "scale_max": 1.5, "rare_class_crop": 0.3, "hue": 0.1},
        "model": {"widths": [4, 8, 8], "deep_supervision": True},
        "loss": {"dice_weight": 0.5},
        "optim": {"clip_norm": 1.0},
        "trainer": {"log_every": 1, "max_steps": 3, "ema_decay": 0.9, "micro_batch_size": 2},
    }
    losses = {}
    fast = FastPath(compiler="aot_eager", keeps_memory=True)
    for name, path in (("plain", PLAIN), ("fast", fast)):
        torch._dynamo.reset()
        monkeypatch.setattr(wiring, "choose", lambda *_, path=path, **__: path)
        with build(tmp_path, **sections, name=name) as made:
            assert made.fit()
            assert made.step.model_with_loss.is_compiled == (path is not PLAIN)
        assert set(compiled_in(tmp_path / "runs" / name)) == (set() if path is PLAIN else {1})
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = torch.tensor([json.loads(line).get("train/loss", 0.0) for line in lines])
    assert int((losses["plain"] > 0).sum()) == 3
    torch.testing.assert_close(losses["fast"], losses["plain"], rtol=1e-5, atol=1e-5)


def test_the_choice_is_told_and_off_is_the_plain_path(tmp_path, capsys):
    write_shards(tmp_path / "train", 9)
    write_shards(tmp_path / "val", 2)
    with build(tmp_path):
        pass
    assert "performance" not in capsys.readouterr().err  # on the CPU there is nothing to choose
    with build(tmp_path, performance="off", name="plain"):
        pass
    assert "performance: off" in capsys.readouterr().err


def test_a_run_keeps_the_precision_that_the_launcher_chose(tmp_path, monkeypatch):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 2)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    with build(tmp_path) as trainer:
        assert trainer.accelerator.mixed_precision == "bf16"
        trainer.fit()
    saved = settings.read_yaml(tmp_path / "runs" / "tiny" / "config.yaml")
    assert saved["trainer"]["mixed_precision"] == "bf16"
    with build(tmp_path):
        pass
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(ConfigError, match=r"trainer.mixed_precision: bf16, now it is no"):
        build(tmp_path)


def test_status_says_how_a_run_was_made_fast(tmp_path):
    write_shards(tmp_path / "train", 9)
    values = settings_of(tmp_path / "train", None, tmp_path / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        assert trainer.fit()
    assert read_status(tmp_path / "runs" / "tiny").performance == "freed memory is kept; no compiler on the CPU"


def test_epochs_become_steps():
    cfg = TrainerConfig(max_epochs=15, global_batch_size=8)
    assert Schedule.of(cfg, num_samples=367, save_every=None) == Schedule(688, 46, 46, 10)


def test_explicit_steps_win():
    cfg = TrainerConfig(max_steps=7, max_epochs=1000, eval_every=3, log_every=2)
    assert Schedule.of(cfg, num_samples=1, save_every=5) == Schedule(7, 3, 5, 2)


def test_a_batch_larger_than_the_data_set_is_one_step_per_epoch():
    assert Schedule.of(TrainerConfig(max_epochs=0.1), num_samples=2, save_every=None) == Schedule(1, 1, 1, 10)


@pytest.mark.parametrize(("native_epochs", "first"), [(0, None), (1, 14), (4, 11), (15, 0)])
def test_native_epochs_are_counted_from_the_end(native_epochs, first):
    assert first_native_epoch(native_epochs, 15) == first


def test_a_run_has_at_most_its_own_epochs_native():
    with pytest.raises(
        ConfigError, match=r"augment.native_epochs \(16\) must be at most the 15 epochs of the run; use 1."
    ):
        first_native_epoch(16, 15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epochs": 0}, r"trainer.max_epochs \(0\) must be above 0"),
        ({"max_epochs": float("inf")}, r"trainer.max_epochs \(inf\) must be above 0 and finite"),
        ({"max_epochs": float("nan")}, r"trainer.max_epochs \(nan\) must be above 0 and finite"),
        ({"timeout_s": 0}, r"trainer.timeout_s \(0\) must be above 0"),
        ({"max_steps": 0}, r"trainer.max_steps \(0\) must be above 0"),
        ({"max_steps": 1, "global_batch_size": 0}, r"trainer.global_batch_size \(0\) must be above 0"),
        ({"max_steps": 1, "micro_batch_size": -1}, r"trainer.micro_batch_size \(-1\) must be above 0"),
        ({"max_steps": 1, "ema_decay": 1.0}, r"trainer.ema_decay \(1.0\) must be at least 0 and below 1; use 0.999"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**values)
