"""The loop on a GPU: the same numbers as on a CPU, in every number format, and never waiting for the device."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import difference
from unetdist.model.config import LossConfig
from unetdist.model.losses import build_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled"),
]

ROOT = Path(__file__).parents[2]
AUGMENT = {"crop_size": [16, 24], "scale_min": 0.7, "scale_max": 1.4, "flip_horizontal": 0.5}
EXACT = {
    "augment": AUGMENT,
    "model": {"widths": [4, 8, 8], "norm": "group"},
    "loss": {"class_weights": "median_frequency", "dice_weight": 0.5},
}


@pytest.fixture
def waiting_is_an_error():
    """Copies from pageable memory, read-backs and the like raise."""

    def switch(on: bool) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield switch
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("dtype", "optim", "tolerance"),
    [
        (torch.float64, {"kind": "adam", "lr": 0.01, "clip_norm": 1.0}, 1e-8),
        (torch.float64, {"kind": "sgd", "lr": 0.05, "nesterov": True}, 1e-10),
        (torch.float32, {"kind": "sgd", "lr": 0.05}, 1e-3),
    ],
    ids=["float64-adam", "float64-sgd", "float32-sgd"],
)
def test_20_steps_are_those_of_the_cpu(train, logged, dtype, optim, tolerance):
    torch.set_default_dtype(dtype)
    trainer = {"max_steps": 20, "micro_batch_size": 2, "ema_decay": 0.9, "log_every": 1}
    cpu, cuda = (train(device, name=device, optim=optim, trainer=trainer, **EXACT) for device in ("cpu", "cuda"))
    assert difference(cpu, cuda) <= tolerance
    torch.testing.assert_close(
        torch.tensor(logged("train/loss", "cuda")),
        torch.tensor(logged("train/loss", "cpu")),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_every_number_format_learns(train, logged, mixed_precision, kind):
    train(
        "cuda",
        model={"widths": [8, 16], "deep_supervision": True, "residual": True},
        optim={"kind": kind, "lr": 0.01 if kind == "adam" else 0.1, "clip_norm": 5.0},
        trainer={"max_steps": 60, "log_every": 10, "mixed_precision": mixed_precision, "ema_decay": 0.9},
    )
    losses = logged("train/loss")
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_no_step_waits_for_the_device(building, waiting_is_an_error, mixed_precision, kind):
    with building(
        "cuda",
        model={"widths": [8, 16, 16], "deep_supervision": True, "dropout": 0.1},
        optim={"kind": kind, "clip_norm": 1.0},
        trainer={"micro_batch_size": 2, "ema_decay": 0.9, "mixed_precision": mixed_precision},
    ) as trainer:
        steps = [step for _, step in zip(range(6), trainer.train_batches(0), strict=False)]
        for step in steps[:3]:
            trainer.train_step(step)  # the first steps load kernels and make the optimizer's state
        waiting_is_an_error(True)
        for step in steps[3:]:
            trainer.train_step(step)
            trainer.state.step += 1
        waiting_is_an_error(False)


@pytest.mark.parametrize("term", ["ce_weight", "dice_weight", "focal_weight", "lovasz_weight"])
def test_no_loss_waits_for_the_device(waiting_is_an_error, term):
    weights = {"ce_weight": 0.0, term: 1.0, "label_smoothing": 0.1}
    loss = build_loss(LossConfig(**weights), num_classes=3).to("cuda")
    logits = torch.randn(2, 3, 64, 64, device="cuda", requires_grad=True)
    mask = torch.randint(0, 3, (2, 64, 64), device="cuda").to(torch.uint8)
    class_pixels = torch.stack([(mask == index).sum((1, 2)) for index in range(3)], dim=1)
    for waits in (False, True):  # the first round loads kernels
        waiting_is_an_error(waits)
        loss(logits, mask, loss.denominators(loss.counts(class_pixels))).backward()
    waiting_is_an_error(False)


@pytest.fixture
def reproducible(monkeypatch):
    """The trainer's settings of a run whose bits are the same each time; afterwards kernels are chosen freely again."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield {"reproducible": True, "max_steps": 12, "log_every": 1, "ema_decay": 0.9}
    torch.use_deterministic_algorithms(False)


MODEL = {"widths": [8, 16, 16], "dropout": 0.2}


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_a_stopped_run_continues_bit_by_bit(building, train, reproducible, mixed_precision, kind):
    sections = {
        "augment": AUGMENT,
        "model": MODEL,
        "optim": {"kind": kind, "lr": 0.01},
        "trainer": {**reproducible, "mixed_precision": mixed_precision},
        "checkpoint": {"save_every": 100},
    }
    straight = train("cuda", name="straight", **sections)
    with building("cuda", name="stopped", **sections) as trainer:
        step = trainer.train_step

        def step_and_stop(micro_batches):
            trainer.stop.received = 15 if trainer.state.step == 6 else None
            return step(micro_batches)

        trainer.train_step = step_and_stop
        assert trainer.fit() is False
        assert 7 <= trainer.state.step < 12
    assert difference(straight, train("cuda", name="stopped", **sections)) == 0


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("model", [MODEL, {**MODEL, "upsample": "bilinear", "residual": True, "drop_path": 0.2}])
def test_a_reproducible_run_has_the_same_bits_each_time(train, reproducible, model, accumulation):
    sections = {
        "augment": AUGMENT,
        "model": model,
        "loss": {"class_weights": "median_frequency", "dice_weight": 0.5, "focal_weight": 0.5, "lovasz_weight": 0.5},
        "optim": {"lr": 0.01, "clip_norm": 1.0},
        "trainer": {**reproducible, "global_batch_size": 8, "micro_batch_size": 8 // accumulation},
    }
    first, second = (train("cuda", name=name, **sections) for name in ("first", "second"))
    assert difference(first, second) == 0


def test_two_gpus_train_the_bits_of_one(data):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    words = ["--world", "1,2", "--steps", "12", "--trainer.reproducible", "true", "--trainer.micro_batch_size", "2"]
    words += ["--data.train", str(data / "train"), "--augment.crop_size", "[16,24]", "--model.widths", "[8,16,16]"]
    words += ["--model.dropout", "0.2", "--trainer.global_batch_size", "8", "--trainer.max_steps", "12"]
    done = subprocess.run([sys.executable, str(ROOT / "launch" / "equivalence.py"), *words], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_run_may_move_to_another_device(building, train, kind, first, then):
    torch.set_default_dtype(torch.float64)
    sections = {**EXACT, "optim": {"kind": kind, "lr": 0.01}, "trainer": {"max_steps": 8, "log_every": 1}}
    straight = train("cpu", name="straight", **sections)
    with building(first, name="moved", **sections) as trainer:
        trainer.stop.received = 15
        assert trainer.fit() is False
    assert difference(straight, train(then, name="moved", **sections)) <= 1e-8
