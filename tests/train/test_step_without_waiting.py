"""The device gets ahead of the host only if no step waits for it; the meta device, which has no numbers, tells."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.no_copies import NoCopies
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World
from unetdist.model.losses import LossConfig, build_loss
from unetdist.model.unet import UNet, UNetConfig
from unetdist.train.checkpoint import CheckpointConfig, Checkpoints
from unetdist.train.ema import Ema
from unetdist.train.optim import OptimConfig, build_optimizer
from unetdist.train.schedule import Schedule
from unetdist.train.share import LossShare
from unetdist.train.trainer import Trainer

META = torch.device("meta")


class Plain:
    """What the step asks of an Accelerator, for one process."""

    scaler = None

    def prepare(self, *parts):
        return parts

    def backward(self, loss):
        loss.backward()

    def no_sync(self, model):
        return torch.enable_grad()

    def clip_grad_norm_(self, parameters, limit):
        return nn.utils.clip_grad_norm_(parameters, limit)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)  # It knows no meta device.
    model = UNet(
        UNetConfig(widths=(4, 8, 8), dropout=0.1, deep_supervision=True), 3, mean=[120.0] * 3, std=[60.0] * 3
    ).to(META)
    optim_cfg = OptimConfig(clip_norm=1.0)
    optimizer = build_optimizer(model, optim_cfg)
    for group in optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    return Trainer(
        accelerator=Plain(),
        world=World(device=META),
        model=model,
        optimizer=optimizer,
        ema=Ema(model, 0.9),
        share=LossShare(model, build_loss(LossConfig(dice_weight=1.0), num_classes=3).to(META)),
        optim_cfg=optim_cfg,
        schedule=Schedule(max_steps=10, eval_every=10, save_every=10, log_every=10),
        global_batch_size=4,
        num_samples=4,
        seed=0,
        max_bad_steps=0,
        source_of=str,
        train_batches=lambda from_sample: [],
        validator=None,
        save_model=lambda *_: None,
        checkpoints=Checkpoints(tmp_path, CheckpointConfig()),
        tracker=SimpleNamespace(),
        stop=SimpleNamespace(),
        watchdog=SimpleNamespace(at=lambda place: None),
        attempt=SimpleNamespace(at=lambda step: None),
    )


@pytest.fixture
def micro_batches():
    return [
        Batch(
            image=torch.zeros(2, 3, 18, 24, dtype=torch.uint8, device=META),
            mask=torch.zeros(2, 18, 24, dtype=torch.uint8, device=META),
            ids=torch.zeros(2, dtype=torch.int64, device=META),
            class_pixels=torch.zeros(2, 3, dtype=torch.int64, device=META),
        )
        for _ in range(2)
    ]


def test_a_step_whose_batch_has_arrived_neither_copies_nor_reads_back(trainer, micro_batches):
    with NoCopies():
        for _ in range(2):
            grad_norm = trainer.train_step(micro_batches)
    assert grad_norm.device == META
    assert all(value.device == META for value in trainer.model.state_dict().values())


def test_a_read_back_would_be_found(trainer, micro_batches):
    trainer.step.clip_gradients = lambda: torch.tensor(float(next(trainer.model.parameters()).sum()))
    with NoCopies(), pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        trainer.train_step(micro_batches)


def test_a_copy_would_be_found(trainer, micro_batches):
    on_host = trainer.share.loss.class_weights.new_ones(3, device="cpu")
    trainer.share.loss.denominators = lambda class_pixels: class_pixels.sum(0).double() * on_host.to(META)
    with NoCopies(), pytest.raises(AssertionError, match="_to_copy.default between cpu and meta"):
        trainer.train_step(micro_batches)
