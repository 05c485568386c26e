"""What `performance: auto` adds on a GPU gives the plain path's losses, and never waits for the device."""

import pytest
import torch

from tests.gpu.test_training_on_gpu import waiting_is_an_error as waiting_is_an_error
from unetdist.train import build
from unetdist.train.performance import PLAIN, FastPath

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # the compiler warns of itself

PATHS = {
    "autotuned": FastPath(autotunes=True),
    "compiled": FastPath(autotunes=True, compiler="inductor"),
    "cuda graphs": FastPath(autotunes=True, compiler="inductor", cuda_graphs=True),
}


@pytest.fixture
def choosing(monkeypatch):
    """Have the next runs take a path whatever the facts."""

    def choose(path):
        torch._dynamo.reset()
        monkeypatch.setattr(build, "choose", lambda *_, **__: path)

    yield choose
    torch.backends.cudnn.benchmark = False
    torch._dynamo.reset()


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("name", PATHS)
def test_losses_are_those_of_the_plain_path(train, logged, choosing, name, mixed_precision):
    sections = {
        "augment": {"crop_size": [16, 24], "flip_horizontal": 0.5, "brightness": 0.2},
        "model": {"widths": [8, 16, 16], "deep_supervision": True},
        "loss": {"dice_weight": 0.5, "class_weights": "median_frequency"},
        "optim": {"lr": 0.003, "clip_norm": 1.0},
        "trainer": {"max_steps": 12, "log_every": 1, "ema_decay": 0.9, "mixed_precision": mixed_precision},
    }
    for run, path in (("plain", PLAIN), ("fast", PATHS[name])):
        choosing(path)
        train("cuda", name=run, **sections)
    tolerance = 2e-3 if mixed_precision == "no" else 3e-2
    torch.testing.assert_close(
        torch.tensor(logged("train/loss", "fast")),
        torch.tensor(logged("train/loss", "plain")),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("name", ["compiled", "cuda graphs"])
def test_no_step_of_the_fast_path_waits_for_the_device(building, waiting_is_an_error, choosing, name):
    choosing(PATHS[name])
    with building(
        "cuda",
        model={"widths": [8, 16, 16]},
        optim={"clip_norm": 1.0},
        trainer={"ema_decay": 0.9, "mixed_precision": "bf16"},
    ) as trainer:
        batches = trainer.rehearsed(trainer.train_batches(0))
        for _ in range(4):
            trainer.train_step(next(batches))
        waiting_is_an_error(True)
        for _ in range(4):
            trainer.train_step(next(batches))
            trainer.state.step += 1
        waiting_is_an_error(False)
        assert trainer.step.model_with_loss.is_compiled == (PATHS[name].compiler is not None)


def test_a_short_run_is_chosen_for_by_its_facts(building):
    with building("cuda") as trainer:
        assert not trainer.step.model_with_loss.is_compiled
    assert torch.backends.cudnn.benchmark
