"""Runs on a GPU and, to compare with, the same runs on the CPU of that machine."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.trainer import Trainer

Runs = Callable[..., Any]


@pytest.fixture(autouse=True)
def exact_gpu(monkeypatch):
    """Skip without a GPU; float32 convolutions are not TF32, and Accelerate forgets the device of the test before."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    forget_the_device()
    yield
    forget_the_device()
    gc.collect()
    torch.cuda.empty_cache()


def forget_the_device() -> None:
    """Accelerate keeps device and number format for the life of the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def on(device: str) -> Iterator[None]:
    """What is built inside computes on `device`, cuda or cpu."""
    forget_the_device()
    with pytest.MonkeyPatch.context() as patched:
        if device == "cpu":
            patched.setattr(torch.cuda, "is_available", lambda: False)
        yield
    forget_the_device()


@pytest.fixture
def data(tmp_path) -> Path:
    """Folder with the shards `train` (16 pictures) and `val` (7, of two sizes)."""
    write_shards(tmp_path / "train", 16)
    write_shards(tmp_path / "val", 7, sizes=((24, 32), (24, 32), (17, 23)))
    return tmp_path


@pytest.fixture
def building(data):
    """`building("cuda", name=..., **sections)`: a trainer, closed at the end of the block."""

    @contextmanager
    def building(device: str, *, name: str = "tiny", **sections: Any) -> Iterator[Trainer]:
        values = {**settings_of(data / "train", data / "val", data / "runs", **sections), "name": name}
        with on(device), build_trainer(settings.from_mapping(Config, values)) as trainer:
            assert trainer.world.device.type == device
            yield trainer

    return building


@pytest.fixture
def train(building):
    """`train("cuda", **as above)`: train to the end; weights, averaged ones too, on the CPU."""

    def train(device: str, **settings: Any) -> dict[str, torch.Tensor]:
        with building(device, **settings) as trainer:
            assert trainer.fit()
            state = dict(trainer.model.state_dict())
            if trainer.ema is not None:
                state |= {f"ema.{name}": value for name, value in trainer.ema.module.state_dict().items()}
            return {name: value.cpu() for name, value in state.items()}

    return train


@pytest.fixture
def logged(data):
    """`logged("train/loss")`: the values of a metric in the order of steps."""

    def logged(metric: str, name: str = "tiny") -> list[float]:
        lines = (data / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [line[metric] for line in map(json.loads, lines) if metric in line]

    return logged


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two states."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
