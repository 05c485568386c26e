"""Trains one recipe on several numbers of processes, and compares samples, losses and all state bit by bit.

Each run is an ordinary training that records its steps. The first run is the reference: where the state of another run
has other bits, it also records by how much they differ.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from unetdist.distributed.gradient_tree import is_whole_subtree
from unetdist.errors import TrainingError
from unetdist.model.config import check_norm
from unetdist.storage.files import write_text
from unetdist.tracking.config import TrackingConfig
from unetdist.tracking.metrics_file import METRICS_FILE, MetricsFile
from unetdist.train.build import build_trainer
from unetdist.train.config import CheckpointConfig, Config
from unetdist.train.trainer import Schedule, Trainer

# One JSON object per step, in the folder of each run; step 0 is before training.
STEPS_FILE = "steps.jsonl"

# The lines of `STEPS_FILE`, each with the values of its step in metrics.jsonl.
Record = Sequence[Mapping[str, Any]]

# Names in metrics.jsonl of what is compared, and kinds of state by the first part of the names in `RunState.pack`.
NUMBERS = {"loss": "train/loss", "gradient norm": "train/grad_norm"}
STATE = {"model": "weights", "ema": "averaged weights", "optimizer": "optimizer state"}


@dataclass(frozen=True)
class RunComparison:
    """A run compared with the reference."""

    world_size: int
    largest: Mapping[str, float | None]
    """For each kind of state the largest absolute difference over all steps; None if all bits are equal."""
    parted: Sequence[str]
    """The first step in which the bits of each kind differ, and the tensor that differs most."""
    broken: Sequence[str]
    """The first step with other samples, and the first after which the processes of one run differ in their state."""
    reasons: Sequence[str]
    """Why bits may differ; empty if equal bits are promised."""

    @property
    def is_as_promised(self) -> bool:
        """Whether nothing differs, or only bits that may differ."""
        return not self.broken and (not self.parted or bool(self.reasons))


def record(config: Config, steps: int) -> None:
    """Collective. Train the first steps as `unetdist train` does, and record each."""
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
    """Collective. Write one line of the record; the first run also writes its state, the reference."""
    # Checksums of samples are added up, so that it does not matter which process has which sample.
    samples = sum(
        zlib.crc32(_bytes(mask), zlib.crc32(_bytes(image), int(sample_id)))
        for batch in micro_batches
        for sample_id, image, mask in zip(batch.ids, batch.image, batch.mask, strict=True)
    )
    trainer.settle()  # as before a checkpoint: norm statistics of all ranks; training does not read them
    tensors = {name: value.detach().cpu().contiguous() for name, value in trainer.run_state.pack()[0].items()}
    hashes: Mapping[str, Any] = defaultdict(hashlib.sha256)
    for name, value in tensors.items():
        if value.numel():  # a network without batch norm has empty statistics
            hashes[kind_of(name)].update(_bytes(value))
    sha256 = {kind: digest.hexdigest() for kind, digest in hashes.items()}
    sum_of_samples = all_reduce_sum(torch.tensor(samples, device=trainer.world.device))
    state_of_ranks = gather_to(0, torch.tensor(zlib.crc32(str(sha256).encode()), device=trainer.world.device))
    if not trainer.world.is_main:
        return
    reference = folder.parent / f"step_{step:08d}.safetensors"
    if not reference.exists():
        save_file(tensors, reference)
    line = {
        "step": step,
        "samples": int(sum_of_samples),
        "ranks_agree": len(set(map(int, state_of_ranks))) == 1,
        "sha256": sha256,
        # Compared here, because the state of all steps of all runs could fill the disk.
        "differences": {
            name: float((tensors[name].double() - value.double()).abs().max())
            for name, value in load_file(reference).items()
            if _bytes(tensors[name]) != _bytes(value)
        },
    }
    with open(folder / STEPS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def kind_of(name: str) -> str:
    """Return the kind of state to which a tensor of a checkpoint belongs."""
    first, *_, last = name.split(".")
    is_statistic = first == "statistics" or last.startswith("running_")
    return "running statistics" if is_statistic else STATE[first]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


def compare_worlds(config: Config, worlds: Sequence[int], *, steps: int) -> list[RunComparison]:
    """Train on each number of processes in turn, and compare the others with the first.

    Raises:
        ConfigError: the global batch is not divisible, or sync_batch has no GPU.
        DataError: the training shards are missing or damaged.
        TrainingError: a run failed.
    """
    on_gpu = torch.cuda.device_count() >= max(worlds)
    steps = min(steps, check_worlds(config, worlds, device_type="cuda" if on_gpu else "cpu"))
    micro_batch_size = shared_micro_batch_size(config, worlds)
    if config.trainer.micro_batch_size is None:
        logger.info("trainer.micro_batch_size: %d in all runs, the largest that they can share", micro_batch_size)
    config = replace(
        config,
        data=replace(config.data, val=None),
        # metrics.jsonl then has the loss of each step; GPUs give equal bits only in this mode.
        trainer=replace(config.trainer, log_every=1, micro_batch_size=micro_batch_size, reproducible=True),
        checkpoint=CheckpointConfig(save_every=steps),  # none but the last
        tracking=TrackingConfig(tracker="none"),
    )
    with tempfile.TemporaryDirectory(prefix="unetdist-equivalence-") as work:
        runs = {size: replace(config, name=f"world_{size}", runs_dir=work) for size in worlds}
        reference, *others = (train(run, size, steps=steps, on_gpu=on_gpu) for size, run in runs.items())
    return [
        compare(reference, other, size, why_bits_may_differ(config, (worlds[0], size)))
        for size, other in zip(worlds[1:], others, strict=True)
    ]


def check_worlds(config: Config, worlds: Sequence[int], *, device_type: str) -> int:
    """Check the settings for all numbers of processes before anything is started; return the steps of the whole run."""
    _, manifest = open_data(config.data, config.data.train)
    for world_size in worlds:
        check_batch_sizes(config.trainer.global_batch_size, shared_micro_batch_size(config, worlds), world_size)
        check_norm(config.model, device_type=device_type, world_size=world_size)
    return Schedule.of(config.trainer, num_samples=manifest.num_samples, save_every=None).max_steps


def shared_micro_batch_size(config: Config, worlds: Sequence[int]) -> int:
    """Return the samples per forward pass of all runs: those of the settings, or the most that all runs can have."""
    global_batch_size, given = config.trainer.global_batch_size, config.trainer.micro_batch_size
    return given or max(1, math.gcd(*(global_batch_size // size for size in worlds)))


def why_bits_may_differ(config: Config, worlds: Sequence[int]) -> list[str]:
    """Return why equal bits are not promised between these numbers of processes; empty if they are."""
    micro_batches = config.trainer.global_batch_size // shared_micro_batch_size(config, worlds)
    reasons = [
        f"{processes(size)} cannot add up the gradients of {micro_batches} micro-batches in the order of one process; "
        f"1, 2, 4, ... and {micro_batches} processes can"
        for size in worlds
        if not is_whole_subtree(micro_batches, size)
    ]
    if config.model.norm == "sync_batch":
        reasons.append(
            "model.norm (sync_batch) normalises the samples of all processes together; with batch, each micro-batch is "
            "normalised alone"
        )
    return reasons


def train(config: Config, world_size: int, *, steps: int, on_gpu: bool) -> Record:
    """Train one run, whose output goes to the terminal, and return its record."""
    logger.info("training %d steps on %s", steps, processes(world_size))
    file = Path(config.runs_dir, f"{config.name}.yaml")
    write_text(file, settings.to_yaml(settings.to_mapping(config)), private=True)
    command = [sys.executable, "-P", "-m", "unetdist", "equivalence", "--processes", str(world_size)]
    command += ["--record", str(steps), "--config", str(file)]
    # The results of kernels depend on the number of threads; launchers choose it by the number of processes.
    environment = {"OMP_NUM_THREADS": "1", **os.environ} | ({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    process = subprocess.Popen(command, env=environment)
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


def compare(reference: Record, other: Record, world_size: int, reasons: Sequence[str]) -> RunComparison:
    """Compare a run on `world_size` processes with the reference, step by step; bits may differ for `reasons`."""
    kinds = (*NUMBERS, *(kind for line in reference for kind in line["sha256"]))
    largest: dict[str, float | None] = dict.fromkeys(kinds)
    first: dict[str, str] = {}
    broken: dict[str, str] = {}
    for before, after in zip(reference, other, strict=True):
        step = f"step {before['step']}"
        if before["samples"] != after["samples"]:
            broken.setdefault("samples", f"{step}: other samples, or other pixels of them")
        if not (before["ranks_agree"] and after["ranks_agree"]):
            broken.setdefault("ranks", f"{step}: the processes of one run differ in their state")
        for kind, tensor, amount in _differences(before, after):
            largest[kind] = max(amount, largest[kind] or 0.0)
            first.setdefault(kind, f"{step}, {kind}: {tensor} differs by {amount:.1e}")
    return RunComparison(world_size, largest, list(first.values()), list(broken.values()), reasons)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield what differs in one step: its kind, the tensor that differs most, and by how much."""
    for kind, name in NUMBERS.items():
        one, two = (line.get(name, math.nan) for line in (before, after))
        # NaN equals NaN as text: a loss that was not finite, or that step 0 does not have.
        if str(one) != str(two):
            yield kind, name, abs(one - two)
    for kind, sha256 in before["sha256"].items():
        if after["sha256"][kind] != sha256:
            amounts = {name: amount for name, amount in after["differences"].items() if kind_of(name) == kind}
            tensor = max(amounts, key=amounts.__getitem__)
            yield kind, tensor, amounts[tensor]


def processes(count: int) -> str:
    """Such as "1 process" or "2 processes"."""
    return f"{count} process{'es' * (count != 1)}"


def render(title: str, rows: Sequence[RunComparison]) -> RenderableType:
    """Return the table of all runs, where they first differ, and what follows from it."""
    table = Table("largest difference", title=title, title_justify="left")
    for row in rows:
        table.add_column(processes(row.world_size), justify="right")
    for kind in rows[0].largest:
        amounts = (row.largest[kind] for row in rows)
        table.add_row(kind, *("[green]equal[/green]" if amount is None else f"{amount:.1e}" for amount in amounts))
    lines = [f"{processes(row.world_size)}, {line}" for row in rows for line in (*row.broken, *row.parted)]
    reasons = dict.fromkeys(reason for row in rows if row.parted for reason in row.reasons)
    if not all(row.is_as_promised for row in rows):
        text = "[bold red]The promise is broken:[/bold red] samples or bits depend on the number of processes"
        text += ", and not only because:" if reasons else "."
    elif reasons:
        text = "[bold yellow]Equal bits are not promised[/bold yellow] here; the samples are the same:"
    else:
        text = "[bold green]As promised:[/bold green] the same samples and the same bits on each number of processes."
    return Group(table, *map(escape, lines), text, *(escape(f"- {reason}") for reason in reasons))
