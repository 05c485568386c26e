"""One run of a comparison: trains some steps and records each, with its difference from the reference."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetdist.cli import settings
from unetdist.data.batch import Batch
from unetdist.distributed.collectives import World, all_reduce_sum
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RecordTask:
    """The instructions for each process of a run, passed as JSON."""

    settings: Mapping[str, Any]
    """Settings of the run, as plain types."""
    steps: int
    float64: bool
    is_nudged: bool
    """Whether the first weights are changed in their last digit."""
    record: str
    """File with one JSON object per step; step 0 is before training."""
    weights: str
    """Folder of the reference weights after each step."""
    is_reference: bool
    """Whether this run writes the reference weights."""


def run(task: RecordTask) -> None:
    """Collective. Train as launch/train.py does, and write the record."""
    # cuDNN chooses kernels by the batch size, and with TF32 each kernel rounds to ten bits in its own way.
    torch.backends.cudnn.allow_tf32 = False
    if task.float64:
        torch.set_default_dtype(torch.float64)
    with build_trainer(settings.from_mapping(Config, task.settings)) as trainer:
        # The learning rate must follow the schedule of the whole run, so only max_steps is cut.
        trainer.schedule = replace(trainer.schedule, max_steps=task.steps)
        if task.is_nudged:
            nudge(trainer)
        watch(trainer, task)
        trainer.fit()


def nudge(trainer: Trainer) -> None:
    """Multiply each weight by 1 plus or minus the resolution of its type."""
    # Another order of a sum could change the weights this much.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + signs.to(weight) * torch.finfo(weight.dtype).eps)
    if trainer.ema is not None:
        trainer.ema.module.load_state_dict(trainer.model.state_dict())


def watch(trainer: Trainer, task: RecordTask) -> None:
    """Collective. Record the weights before training, and let `trainer` record each step."""
    train_step = trainer.train_step

    def step_and_write(micro_batches: list[Batch]) -> Tensor:
        grad_norm = train_step(micro_batches)
        write_step(trainer, task, trainer.state.step + 1, micro_batches)
        return grad_norm

    if trainer.world.is_main:
        Path(task.record).write_text("")
    write_step(trainer, task, 0, [])
    trainer.train_step = step_and_write  # type: ignore[method-assign]


def write_step(trainer: Trainer, task: RecordTask, step: int, micro_batches: list[Batch]) -> None:
    """Collective. Write one line of the record."""
    samples = samples_of(micro_batches, trainer.world) if micro_batches else []
    ranks_agree = agree(trainer.model, trainer.world)
    trainer.settle()  # as before a validation: norm statistics on all ranks; training does not read them
    if not trainer.world.is_main:
        return
    models = {"": trainer.model} if trainer.ema is None else {"": trainer.model, "ema.": trainer.ema.module}
    tensors = {
        prefix + name: value.detach().cpu().contiguous()
        for prefix, model in models.items()
        for name, value in model.state_dict().items()
        if value.is_floating_point()  # nothing depends on a norm's count of batches
    }
    file = Path(task.weights) / f"step_{step:08d}.safetensors"
    if task.is_reference:
        save_file(tensors, file)
    # The largest difference of each tensor that is not equal bit by bit.
    differences = {
        name: float((tensors[name].double() - value.double()).abs().max())
        for name, value in load_file(file).items()
        if not torch.equal(tensors[name], value)
    }
    line = {"step": step, "samples": samples, "ranks_agree": ranks_agree, "differences": differences}
    with open(task.record, "a", encoding="utf-8") as record:
        record.write(json.dumps(line) + "\n")


def samples_of(micro_batches: list[Batch], world: World) -> list[list[int]]:
    """Collective. [id, checksum of augmented image and mask] of each sample of the global batch, sorted."""
    mine = [
        [int(sample_id), zlib.crc32(mask.numpy().tobytes(), zlib.crc32(image.numpy().tobytes()))]
        for batch in micro_batches
        for sample_id, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
    ]
    return sorted(_of_all_ranks(mine, world).flatten(0, 1).tolist())


def agree(model: torch.nn.Module, world: World) -> bool:
    """Collective. Whether the parameters of all ranks are equal, bit by bit."""
    checksum = 0
    for weight in model.parameters():
        checksum = zlib.crc32(weight.detach().cpu().numpy().tobytes(), checksum)
    return len(set(_of_all_ranks(checksum, world).tolist())) == 1


def _of_all_ranks(mine: Any, world: World) -> Tensor:
    """Collective. Return (world_size, ...) int64: what each rank passed, which has one shape on all."""
    own = torch.tensor(mine, dtype=torch.int64, device=world.device)
    rows = torch.zeros(world.world_size, *own.shape, dtype=torch.int64, device=world.device)
    rows[world.rank] = own
    return all_reduce_sum(rows)
