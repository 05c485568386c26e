"""Starts the runs of a comparison, each with one `accelerate launch`, and says which of them must be equal."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from unetdist.apps.equivalence.compare import Record
from unetdist.apps.equivalence.record import RecordTask
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import progress
from unetdist.data.loader import check_batch_sizes, open_data
from unetdist.errors import TrainingError
from unetdist.model.config import check_norm
from unetdist.storage.files import write_json
from unetdist.tracking import TrackingConfig
from unetdist.tracking.metrics_file import METRICS_FILE
from unetdist.train.checkpoint import CheckpointConfig
from unetdist.train.config import Config
from unetdist.train.trainer import Schedule

# Last lines of output to show when a run fails without a message for the user.
LINES_SHOWN = 30


@dataclass(frozen=True)
class ComparedRun:
    """One training of the comparison."""

    world_size: int
    kind: Literal["", "reference", "again", "nudged"] = ""
    """`nudged` starts from weights that are changed in their last digit."""

    @property
    def label(self) -> str:
        """Such as "1 again" or "2"."""
        return f"{self.world_size} {self.kind}".strip()

    @property
    def title(self) -> str:
        """Such as "1 process again" or "2 processes"."""
        return f"{processes(self.world_size)} {self.kind.replace('reference', '')}".strip()


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The settings that all runs share."""

    config: Config
    """Those of `trained_config`."""
    steps: int
    float64: bool
    on_gpu: bool
    script: Path
    """The script that trains the `RecordTask` in the file given by --task."""
    work: Path
    """An empty folder for the files of all runs."""


def trained_config(config: Config, *, float64: bool) -> Config:
    """Return the user's settings, without validation, checkpoints and dashboards, and in the chosen precision."""
    precision = "no" if float64 else config.trainer.mixed_precision
    return replace(
        config,
        data=replace(config.data, val=None),
        # metrics.jsonl then has the loss of each step.
        trainer=replace(config.trainer, log_every=1, mixed_precision=precision),
        checkpoint=CheckpointConfig(),
        tracking=TrackingConfig(tracker="none"),
    )


def runs_of(worlds: Sequence[int]) -> list[ComparedRun]:
    """Return the runs: the first number of processes is the reference, and is repeated exactly and nudged."""
    first = worlds[0]
    return [
        ComparedRun(first, "reference"),
        ComparedRun(first, "again"),
        ComparedRun(first, "nudged"),
        *map(ComparedRun, worlds[1:]),
    ]


def processes(count: int) -> str:
    """Such as "1 process" or "2 processes"."""
    return f"{count} process{'es' * (count != 1)}"


def has_gpus(worlds: Sequence[int]) -> bool:
    """Whether there is one GPU for each process of the largest run; otherwise all runs use the CPU."""
    return torch.cuda.device_count() >= max(worlds)


def train_all(runs: Sequence[ComparedRun], plan: ComparisonPlan) -> list[Record]:
    """Train the runs one after the other and return their records."""
    records = []
    with progress("training", len(runs)) as bar:
        for run in runs:
            bar.advance(0, run.title)
            records.append(train(run, plan))
            bar.advance(1)
    return records


def train(run: ComparedRun, plan: ComparisonPlan) -> Record:
    """Train one run and return its record, with loss and gradient norm.

    Raises:
        TrainingError: the run failed; the message has its errors.
    """
    name = run.label.replace(" ", "_")
    record, task_file, log = (plan.work / f"{name}.{kind}" for kind in ("jsonl", "json", "log"))
    weights, runs_dir = plan.work / "weights", plan.work / "runs"
    task = RecordTask(
        settings=settings.to_mapping(replace(plan.config, name=name, runs_dir=str(runs_dir))),
        steps=plan.steps,
        float64=plan.float64,
        is_nudged=run.kind == "nudged",
        record=str(record),
        weights=str(weights),
        is_reference=run.kind == "reference",
    )
    weights.mkdir(exist_ok=True)
    write_json(task_file, asdict(task), private=public(task.settings) != task.settings)
    several = "one_node.yaml" if plan.on_gpu else "cpu.yaml"
    file = plan.script.parents[1] / "configs" / "accelerate" / (several if run.world_size > 1 else "one_gpu.yaml")
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(file)]
    words = ["--num_processes", str(run.world_size), str(plan.script), "--task", str(task_file)]
    env = os.environ | ({} if plan.on_gpu else {"CUDA_VISIBLE_DEVICES": ""})
    with open(log, "wb") as output:
        process = subprocess.Popen([*launch, *words], env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        finally:
            process.terminate()  # does nothing once the process has ended
            process.wait()
    if code:
        raise TrainingError(f"the run on {run.title} ended with exit code {code}:\n{_cause(log)}")
    return joined(record, runs_dir / name / METRICS_FILE)


def joined(record: Path, metrics: Path) -> Record:
    """Join the record of a run with its metrics.jsonl, step by step."""
    of_step = {line["step"]: line for line in _lines(metrics)}
    return [{**of_step.get(line["step"], {}), **line} for line in _lines(record)]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _cause(log: Path) -> str:
    """Return the error messages for the user, or the end of the output if there are none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"(\[rank \d+\] )?error: ", line)]
    return "\n".join(dict.fromkeys(errors) if errors else lines[-LINES_SHOWN:])


def check_worlds(config: Config, worlds: Sequence[int], *, device_type: str) -> int:
    """Check the settings for all numbers of processes before anything is started; return the steps of the whole run.

    Raises:
        ConfigError: the global batch is not divisible, or sync_batch has no GPU.
        DataError: the training shards are missing or damaged.
    """
    _, manifest = open_data(config.data, config.data.train)
    for world_size in worlds:
        check_batch_sizes(config.trainer.global_batch_size, samples_per_forward(config, world_size), world_size)
        check_norm(config.model, device_type=device_type, world_size=world_size)
    return Schedule.of(config.trainer, num_samples=manifest.num_samples, save_every=None).max_steps


def broken_by(config: Config, worlds: Sequence[int]) -> list[str]:
    """Return why the weights may differ between these numbers of processes: a setting and its reason each."""
    if len(set(worlds)) == 1:
        return []
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
        f"trainer.mixed_precision ({trainer.mixed_precision}) rounds the gradient of each process; use no, or "
        "--float64": trainer.mixed_precision != "no",
    }
    return [reason for reason, applies in reasons.items() if applies]


def samples_per_forward(config: Config, world_size: int) -> int:
    """Return the number of samples that a process passes through the network at once."""
    return config.trainer.micro_batch_size or max(1, config.trainer.global_batch_size // world_size)
