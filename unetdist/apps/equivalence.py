"""Trains one recipe on several numbers of processes, and compares samples, losses and weights step by step.

Each run is an ordinary training in double precision, started by `accelerate launch`, that records its steps. The first
run is the reference: the others compare their weights with its weights after each step.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.data.batch import Batch
from unetdist.data.loader import check_batch_sizes, open_data
from unetdist.distributed.collectives import all_reduce_sum, gather_to
from unetdist.errors import TrainingError
from unetdist.model.config import check_norm
from unetdist.storage.files import write_text
from unetdist.tracking import TrackingConfig
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.train.build import build_trainer
from unetdist.train.checkpoint import CheckpointConfig
from unetdist.train.config import Config
from unetdist.train.trainer import Schedule, Trainer

# One JSON object per step, in the folder of each run; step 0 is before training.
STEPS_FILE = "steps.jsonl"

# The lines of `STEPS_FILE`, each with the values of its step in metrics.jsonl.
Record = Sequence[Mapping[str, Any]]

# Rounding in double precision stays far below this in the first steps: Adam turns a gradient that is only rounding
# (1e-17) into a step of lr * 1e-17 / 1e-8. A wrong gradient is far above. Relative for loss and gradient norm.
ALLOWED = 1e-9


@dataclass(frozen=True)
class RunComparison:
    """A run compared with the reference."""

    world_size: int
    largest: Mapping[str, float]
    """Largest relative difference of loss and gradient norm, and largest difference of a weight, over all steps."""
    beyond_rounding: Sequence[str]
    """The first step in which each of them differs by more than `ALLOWED`."""
    broken: Sequence[str]
    """The first step with other samples, and the first after which the processes of one run have different weights."""

    def is_as_promised(self, reasons: Sequence[str]) -> bool:
        """Whether nothing differs, or only weights that may differ for these `reasons`."""
        return not self.broken and (bool(reasons) or not self.beyond_rounding)


def record(config: Config, steps: int) -> None:
    """Collective. Train the first steps as launch/train.py does, but in double precision, and record each."""
    torch.set_default_dtype(torch.float64)
    with build_trainer(config) as trainer:
        # The learning rate must follow the schedule of the whole run, so only max_steps is cut.
        trainer.schedule = replace(trainer.schedule, max_steps=steps)
        folder = Path(config.runs_dir, config.name)
        train_step = trainer.train_step

        def step_and_record(micro_batches: list[Batch]) -> Tensor:
            grad_norm = train_step(micro_batches)
            record_step(trainer, folder, trainer.state.step + 1, micro_batches)
            return grad_norm

        record_step(trainer, folder, 0, [])
        trainer.train_step = step_and_record  # type: ignore[method-assign]
        trainer.fit()


def record_step(trainer: Trainer, folder: Path, step: int, micro_batches: list[Batch]) -> None:
    """Collective. Write one line of the record; the first run also writes the reference weights."""
    # Checksums of samples are added up, so that it does not matter which process has which sample.
    samples = sum(
        zlib.crc32(_bytes(mask), zlib.crc32(_bytes(image), int(sample_id)))
        for batch in micro_batches
        for sample_id, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
    )
    weights = 0
    for weight in trainer.model.parameters():
        weights = zlib.crc32(_bytes(weight), weights)
    sum_of_samples = all_reduce_sum(torch.tensor(samples, device=trainer.world.device))
    weights_of_ranks = gather_to(0, torch.tensor(weights, device=trainer.world.device))
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
    reference = folder.parent / f"step_{step:08d}.safetensors"
    if not reference.exists():
        save_file(tensors, reference)
    line = {
        "step": step,
        "samples": int(sum_of_samples),
        "ranks_agree": len(set(map(int, weights_of_ranks))) == 1,
        # Compared here, because the weights of all steps of all runs could fill the disk.
        "differences": {
            name: float((tensors[name] - value).abs().max())
            for name, value in load_file(reference).items()
            if not torch.equal(tensors[name], value)
        },
    }
    with open(folder / STEPS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()


def compare_worlds(config: Config, worlds: Sequence[int], *, steps: int, script: Path) -> list[RunComparison]:
    """Train on each number of processes in turn, and compare the others with the first.

    `script` is the command that each process runs; with --record it calls `record`.

    Raises:
        ConfigError: the global batch is not divisible, or sync_batch has no GPU.
        DataError: the training shards are missing or damaged.
        TrainingError: a run failed.
    """
    on_gpu = torch.cuda.device_count() >= max(worlds)
    steps = min(steps, check_worlds(config, worlds, device_type="cuda" if on_gpu else "cpu"))
    config = replace(
        config,
        data=replace(config.data, val=None),
        # metrics.jsonl then has the loss of each step.
        trainer=replace(config.trainer, log_every=1, mixed_precision="no"),
        checkpoint=CheckpointConfig(save_every=steps),  # none but the last
        tracking=TrackingConfig(tracker="none"),
    )
    with tempfile.TemporaryDirectory(prefix="unetdist-equivalence-") as work:
        runs = {size: replace(config, name=f"world_{size}", runs_dir=work) for size in worlds}
        reference, *others = (train(run, size, script=script, steps=steps, on_gpu=on_gpu) for size, run in runs.items())
    return [compare(reference, other, size) for size, other in zip(worlds[1:], others, strict=True)]


def check_worlds(config: Config, worlds: Sequence[int], *, device_type: str) -> int:
    """Check the settings for all numbers of processes before anything is started; return the steps of the whole run."""
    _, manifest = open_data(config.data, config.data.train)
    for world_size in worlds:
        check_batch_sizes(config.trainer.global_batch_size, samples_per_forward(config, world_size), world_size)
        check_norm(config.model, device_type=device_type, world_size=world_size)
    return Schedule.of(config.trainer, num_samples=manifest.num_samples, save_every=None).max_steps


def train(config: Config, world_size: int, *, script: Path, steps: int, on_gpu: bool) -> Record:
    """Train one run, whose output goes to the terminal, and return its record."""
    logger.info("training %d steps on %s", steps, processes(world_size))
    file = Path(config.runs_dir, f"{config.name}.yaml")
    write_text(file, settings.to_yaml(settings.to_mapping(config)), private=True)
    several = "one_node.yaml" if on_gpu else "cpu.yaml"
    launcher = script.resolve().parents[1] / "configs/accelerate" / (several if world_size > 1 else "one_gpu.yaml")
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(launcher)]
    command += ["--num_processes", str(world_size), str(script), "--record", str(steps), "--config", str(file)]
    process = subprocess.Popen(command, env=os.environ | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}))
    try:
        code = process.wait()
    finally:
        process.terminate()  # after Ctrl-C; does nothing once the process has ended
        process.wait()
    if code:
        raise TrainingError(f"the run on {processes(world_size)} ended with exit code {code}; its output is above.")
    return read_record(Path(config.runs_dir, config.name))


def read_record(folder: Path) -> Record:
    """Read what a run recorded, with the loss and the gradient norm of each step."""
    metrics = MetricsFile(folder / METRICS_FILE).rows()
    lines = map(json.loads, (folder / STEPS_FILE).read_text(encoding="utf-8").splitlines())
    return [{**metrics.get(line["step"], {}), **line} for line in lines]


def compare(reference: Record, other: Record, world_size: int) -> RunComparison:
    """Compare a run on `world_size` processes with the reference, step by step."""
    largest = dict.fromkeys(("loss", "gradient", "weights"), 0.0)
    first: dict[str, str] = {}
    broken: dict[str, str] = {}
    for before, after in zip(reference, other, strict=True):
        step = f"step {before['step']}"
        if before["samples"] != after["samples"]:
            broken.setdefault("samples", f"{step}: other samples, or other pixels of them")
        if not (before["ranks_agree"] and after["ranks_agree"]):
            broken.setdefault("ranks", f"{step}: the processes of one run have different weights")
        # A comparison with NaN is always false, so that NaN would pass for a small difference.
        weights = {name: math.inf if math.isnan(value) else value for name, value in after["differences"].items()}
        tensor = max(weights, key=weights.__getitem__, default="")
        amounts = {
            "loss": _relative(before.get("train/loss"), after.get("train/loss")),
            "gradient": _relative(before.get("train/grad_norm"), after.get("train/grad_norm")),
            "weights": weights.get(tensor, 0.0),
        }
        for what, amount in amounts.items():
            largest[what] = max(largest[what], amount)
            if amount > ALLOWED:
                first.setdefault(what, f"{step}: {tensor if what == 'weights' else what} differs by {amount:.1e}")
    return RunComparison(world_size, largest, list(first.values()), list(broken.values()))


def _relative(one: float | None, two: float | None) -> float:
    if one == two:  # also if both are missing, as before the first step
        return 0.0
    # The record of a step has NaN where a number was not finite, which says nothing about equality.
    if one is None or two is None or math.isnan(one) or math.isnan(two):
        return math.inf
    return abs(one - two) / max(abs(one), abs(two))


def broken_by(config: Config, worlds: Sequence[int]) -> list[str]:
    """Return why the weights may differ between these numbers of processes: a setting and its reason each."""
    model, trainer = config.model, config.trainer
    together = {size * samples_per_forward(config, size) for size in worlds}
    reasons = {
        f"model.norm ({model.norm}) normalises each process's own part of the batch; group and instance normalise each "
        "image, sync_batch (GPUs) the batch of all processes": model.norm == "batch",
        f"model.norm ({model.norm}) normalises trainer.micro_batch_size ({trainer.micro_batch_size}) samples of each "
        "process; remove micro_batch_size": model.norm == "sync_batch" and len(together) > 1,
        f"model.encoder ({model.encoder}) has its own norms, usually batch norm, whatever model.norm says; null uses "
        "the encoder of model.widths": model.encoder is not None,
        f"model.dropout ({model.dropout}) drops different channels on each process; use 0": model.dropout,
        f"model.drop_path ({model.drop_path}) skips different blocks on each process; use 0": model.drop_path,
    }
    return [reason for reason, applies in reasons.items() if applies]


def samples_per_forward(config: Config, world_size: int) -> int:
    """Return the number of samples that a process passes through the network at once."""
    return config.trainer.micro_batch_size or max(1, config.trainer.global_batch_size // world_size)


def processes(count: int) -> str:
    """Such as "1 process" or "2 processes"."""
    return f"{count} process{'es' * (count != 1)}"


def render(title: str, rows: Sequence[RunComparison], reasons: Sequence[str]) -> RenderableType:
    """Return the table of all runs, where they first differ, and what follows from it.

    `reasons` are the settings because of which the weights may differ; empty if they must be equal.
    """
    caption = f"largest difference; equal: at most {ALLOWED:.0e}; loss and gradient norm relative, weights absolute"
    table = Table("processes", title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("loss", "gradient", "weights"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in rows:
        verdict = "[green]equal[/green]"
        if row.broken or row.beyond_rounding:
            verdict = "[yellow]may differ[/yellow]" if row.is_as_promised(reasons) else "[red]DIFFERS[/red]"
        table.add_row(str(row.world_size), *(f"{amount:.1e}" for amount in row.largest.values()), verdict)
    lines = [f"{processes(row.world_size)}, {line}" for row in rows for line in (*row.broken, *row.beyond_rounding)]
    if not all(row.is_as_promised(reasons) for row in rows):
        text = "[bold red]The promise is broken:[/bold red] samples or weights depend on the number of processes"
        text += ", and not only because of:" if reasons else "."
    elif reasons:
        text = "[bold yellow]Equal weights are not promised[/bold yellow] with these settings; samples are the same:"
    else:
        text = "[bold green]As promised:[/bold green] the same samples and the same weights on any number of processes."
    return Group(table, *map(escape, lines), text, *(escape(f"- {reason}") for reason in reasons))
