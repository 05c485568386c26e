"""Layout, norms, scores and saved weights on a GPU."""

import pytest
import torch
from torch import nn

from tests.gpu.conftest import difference, on
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.metrics import confusion_matrix
from unetdist.evaluation.validator import evaluations

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_convolutions_keep_channels_last(building, mixed_precision):
    with building(
        "cuda", model={"widths": [8, 16, 32], "residual": True}, trainer={"mixed_precision": mixed_precision}
    ) as trainer:
        wrong = []

        def look(name):
            def hook(module, inputs, output):
                if not output.is_contiguous(memory_format=torch.channels_last):
                    wrong.append(name)

            return hook

        for name, module in trainer.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
                module.register_forward_hook(look(name))
        trainer.train_step(next(iter(trainer.train_batches(0))))
        assert wrong == []
        for name, parameter in trainer.model.named_parameters():
            assert parameter.ndim != 4 or parameter.is_contiguous(memory_format=torch.channels_last), name


def test_sync_batch_of_one_process_is_batch(train):
    batch, sync_batch = (
        train(
            "cuda",
            name=norm,
            model={"widths": [4, 8], "norm": norm},
            optim={"kind": "sgd", "lr": 0.05},
            trainer={"max_steps": 5},
        )
        for norm in ("batch", "sync_batch")
    )
    assert difference(batch, sync_batch) <= 1e-5


def test_the_confusion_matrix_is_the_cpus():
    generator = torch.Generator().manual_seed(0)
    pred = torch.randint(0, 12, (3, 241, 173), generator=generator)
    mask = torch.randint(0, 13, pred.shape, generator=generator)
    mask = torch.where(mask == 12, 255, mask).to(torch.uint8)
    assert torch.equal(confusion_matrix(pred.cuda(), mask.cuda(), 12).cpu(), confusion_matrix(pred, mask, 12))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_score_is_the_cpus_integer_by_integer(train, data, batch_size):
    torch.set_default_dtype(torch.float64)
    train("cuda", model={"widths": [4, 8]}, optim={"lr": 0.01}, trainer={"max_steps": 10, "ema_decay": 0.5})
    cfg, reports = ValidationConfig(batch_size=batch_size), []
    for device in ("cpu", "cuda"):
        with (
            on(device),
            evaluations([str(data / "runs/tiny/last")], str(data / "val"), cfg=cfg, num_workers=0) as (
                ((validator, saved),),
                world,
            ),
        ):
            assert world.device.type == saved.model.mean.device.type == device
            reports.append(validator.score(saved.model).to_mapping())
    cpu, cuda = reports
    assert cuda["confusion"] == cpu["confusion"]
    assert cuda["miou_interval_95"] == cpu["miou_interval_95"]
    assert cuda["loss"] == pytest.approx(cpu["loss"], rel=1e-6)


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "group", "instance", "none"])
@pytest.mark.parametrize("mixed_precision", ["bf16", "fp16"])
def test_every_norm_trains_in_half_precision(train, norm, mixed_precision):
    state = train(
        "cuda",
        model={"widths": [8, 16], "norm": norm, "upsample": "bilinear", "deep_supervision": True},
        trainer={"max_steps": 3, "mixed_precision": mixed_precision},
    )
    assert all(value.isfinite().all() for value in state.values())
