import pytest

from unetdist.errors import ConfigError
from unetdist.train.schedule import Schedule, TrainerConfig, first_native_epoch


def test_epochs_become_steps():
    cfg = TrainerConfig(max_epochs=15, global_batch_size=8)
    assert Schedule.of(cfg, num_samples=367, save_every=None) == Schedule(688, 46, 46, 10)


def test_explicit_steps_win():
    cfg = TrainerConfig(max_steps=7, max_epochs=1000, eval_every=3, log_every=2)
    assert Schedule.of(cfg, num_samples=1, save_every=5) == Schedule(7, 3, 5, 2)


def test_a_batch_larger_than_the_data_set_is_one_step_per_epoch():
    assert Schedule.of(TrainerConfig(max_epochs=0.1), num_samples=2, save_every=None) == Schedule(1, 1, 1, 10)


def native(native_epochs, max_epochs=15):
    cfg = TrainerConfig(max_epochs=max_epochs, global_batch_size=8)
    schedule = Schedule.of(cfg, num_samples=367, save_every=None)
    return first_native_epoch(native_epochs, schedule, global_batch_size=8, num_samples=367)


@pytest.mark.parametrize(("native_epochs", "first"), [(0, None), (1, 14), (4, 11), (15, 0)])
def test_native_epochs_are_counted_from_the_end(native_epochs, first):
    assert native(native_epochs) == first


def test_a_run_has_at_most_its_own_epochs_native():
    with pytest.raises(
        ConfigError,
        match=r"augment.native_epochs \(16\) must be at most the 15 epochs of the run; use 1.",
    ):
        native(16)


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
        (
            {"max_steps": 1, "ema_decay": 1.0},
            r"trainer.ema_decay \(1.0\) must be at least 0 and below 1; use 0.999",
        ),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**values)
