"""Starts the runs of a comparison, each with one `accelerate launch`, and says which of them must be equal."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from unetdist.apps.equivalence.compare import Record
from unetdist.apps.equivalence.record import RecordTask
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import ProgressBar, progress
from unetdist.data.loader import check_batch_sizes, open_data
from unetdist.errors import TrainingError
from unetdist.model.config import check_norm
from unetdist.storage.files import write_json
from unetdist.tracking import TrackingConfig
from unetdist.tracking.metrics_file import METRICS_FILE
from unetdist.train.checkpoint import CheckpointConfig
from unetdist.train.config import Config
from unetdist.train.trainer import Schedule

# How often the progress of a run is read.
POLL_S = 0.2

# Last lines of output to show when a run fails without a message for the user.
LINES_SHOWN = 30


@dataclass(frozen=True)
class ComparedRun:
    """One training of the comparison."""

    label: str
    """Its number of processes, and "again" or "nudged"."""
    world_size: int
    is_reference: bool = False
    is_repeat: bool = False
    is_nudged: bool = False
    """Starts from weights that are changed in their last digit."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return self.label.replace(" ", "_")

    @property
    def title(self) -> str:
        """Such as "1 process again" or "2 processes"."""
        return " ".join([processes(self.world_size), *self.label.split()[1:]])


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The settings that all runs share."""

    config: Config
    """The user's settings."""
    steps: int
    float64: bool
    on_gpu: bool
    script: Path
    """The script that trains the `RecordTask` in the file given by --task."""
    work: Path
    """An empty folder for the files of all runs."""

    @property
    def trained(self) -> Config:
        """The user's settings, without validation, checkpoints and dashboards, and in the chosen precision."""
        return replace(
            self.config,
            runs_dir=str(self.work / "runs"),
            data=replace(self.config.data, val=None),
            trainer=replace(
                self.config.trainer,
                log_every=1,  # metrics.jsonl then has the loss of each step
                mixed_precision="no" if self.float64 else self.config.trainer.mixed_precision,
            ),
            checkpoint=CheckpointConfig(),
            tracking=TrackingConfig(tracker="none"),
        )

    def file(self, run: ComparedRun, kind: str) -> Path:
        """A file of a run."""
        return self.work / f"{run.name}.{kind}"


def runs_of(worlds: Sequence[int]) -> list[ComparedRun]:
    """The runs: the first number of processes is the reference, and is repeated exactly and nudged."""
    first = worlds[0]
    return [
        ComparedRun(f"{first}", first, is_reference=True),
        ComparedRun(f"{first} again", first, is_repeat=True),
        ComparedRun(f"{first} nudged", first, is_nudged=True),
        *(ComparedRun(f"{size}", size) for size in worlds[1:]),
    ]


def processes(count: int) -> str:
    """Such as "1 process" or "2 processes"."""
    return f"{count} process{'es' * (count != 1)}"


def has_gpus(worlds: Sequence[int]) -> bool:
    """Whether there is one GPU for each process of the largest run; otherwise all runs use the CPU."""
    return torch.cuda.device_count() >= max(worlds)


def train_all(runs: Sequence[ComparedRun], plan: ComparisonPlan) -> list[Record]:
    """Train the runs one after the other and return their records."""
    with progress("training", len(runs) * plan.steps) as bar:
        return [train(run, plan, bar) for run in runs]


def train(run: ComparedRun, plan: ComparisonPlan, bar: ProgressBar) -> Record:
    """Train one run and return its record, with loss and gradient norm.

    Raises:
        TrainingError: the run failed; the message has its errors.
    """
    weights = plan.work / "weights"
    task = RecordTask(
        settings=settings.to_mapping(replace(plan.trained, name=run.name)),
        steps=plan.steps,
        float64=plan.float64,
        is_nudged=run.is_nudged,
        record=str(plan.file(run, "jsonl")),
        weights=str(weights),
        is_reference=run.is_reference,
    )
    weights.mkdir(exist_ok=True)
    private = public(task.settings) != task.settings
    write_json(plan.file(run, "json"), asdict(task), private=private)
    bar.advance(0, f"{run.title}, starting")
    with open(plan.file(run, "log"), "wb") as output:
        code = _watch(_start(run, plan, output), lambda done: bar.advance(done, run.title), plan.file(run, "jsonl"))
    if code:
        raise TrainingError(f"the run on {run.title} ended with exit code {code}:\n{_cause(plan.file(run, 'log'))}")
    return joined(plan.file(run, "jsonl"), plan.work / "runs" / run.name / METRICS_FILE)


def joined(record: Path, metrics: Path) -> Record:
    """Join the record of a run with its metrics.jsonl, step by step."""
    of_step = {line["step"]: line for line in _lines(metrics)}
    return [{**of_step.get(line["step"], {}), **line} for line in _lines(record)]


def _start(run: ComparedRun, plan: ComparisonPlan, output: IO[bytes]) -> "subprocess.Popen[bytes]":
    several = "one_node.yaml" if plan.on_gpu else "cpu.yaml"
    name = several if run.world_size > 1 else "one_gpu.yaml"
    file = plan.script.parents[1] / "configs" / "accelerate" / name
    words = ["--config_file", str(file), "--num_processes", str(run.world_size), str(plan.script)]
    launch = [sys.executable, "-P", "-m", "accelerate.commands.launch", *words, "--task"]
    return subprocess.Popen(
        [*launch, str(plan.file(run, "json"))],
        env=os.environ | ({} if plan.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _watch(process: "subprocess.Popen[bytes]", advance: Callable[[int], None], record: Path) -> int:
    """Report progress until the process ends, and return its exit code."""
    done = 0
    code: int | None = None
    try:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_S)
            steps = max(0, len(_lines(record)) - 1)  # the first line is before training
            if steps > done:
                advance(steps - done)
                done = steps
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _lines(file: Path) -> list[dict[str, Any]]:
    """All complete lines; none if there is no file yet."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _cause(log: Path) -> str:
    """The error messages for the user, or the end of the output if there are none."""
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
    """The settings because of which weights may differ between these numbers of processes, each with its reason."""
    if len(set(worlds)) == 1:
        return []
    reasons = []
    normalised_together = {size * samples_per_forward(config, size) for size in worlds}
    match config.model.norm:
        case "batch":
            reasons.append(
                "model.norm (batch) normalises each process's own part of the batch; group and instance normalise each "
                "image, sync_batch (GPUs) the batch of all processes"
            )
        case "sync_batch" if len(normalised_together) > 1:
            reasons.append(
                f"model.norm (sync_batch) normalises trainer.micro_batch_size ({config.trainer.micro_batch_size}) "
                "samples of each process; remove micro_batch_size"
            )
    if config.model.encoder is not None:
        reasons.append(
            f"model.encoder ({config.model.encoder}) has its own norms, usually batch norm, whatever model.norm "
            "says; null uses the encoder of model.widths"
        )
    if config.model.dropout:
        reasons.append(f"model.dropout ({config.model.dropout}) drops different channels on each process; use 0")
    if config.model.drop_path:
        reasons.append(f"model.drop_path ({config.model.drop_path}) skips different blocks on each process; use 0")
    if config.trainer.mixed_precision != "no":
        reasons.append(
            f"trainer.mixed_precision ({config.trainer.mixed_precision}) rounds the gradient of each process; "
            "use no, or --float64"
        )
    return reasons


def samples_per_forward(config: Config, world_size: int) -> int:
    """Number of samples that a process passes through the network at once."""
    return config.trainer.micro_batch_size or max(1, config.trainer.global_batch_size // world_size)
