"""The runs of a comparison: each is one `accelerate launch` on this machine, watched while it trains."""

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
from unetdist.apps.equivalence.record import Task
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import ProgressBar, progress
from unetdist.errors import TrainingError
from unetdist.storage.files import write_json
from unetdist.tracking import TrackingConfig
from unetdist.tracking.metrics_file import METRICS_FILE
from unetdist.train.checkpoint import CheckpointConfig
from unetdist.train.config import Config

LOOK_EVERY_S = 0.2
"""How often the record of a run that trains is looked at."""

LINES_SHOWN = 30
"""Of the output of a run that failed without an error meant for the user."""


@dataclass(frozen=True)
class Run:
    """One training of the comparison."""

    label: str
    """Its number of processes and what else tells it apart; also of its files."""

    world_size: int
    is_reference: bool = False
    is_repeat: bool = False
    is_nudged: bool = False
    """Begun from weights that are changed in their last digit."""

    @property
    def name(self) -> str:
        """Of its files."""
        return self.label.replace(" ", "_")

    @property
    def title(self) -> str:
        """1 process again; 2 processes."""
        return " ".join([processes(self.world_size), *self.label.split()[1:]])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all runs have in common."""

    config: Config
    """Of the user."""

    steps: int
    float64: bool
    on_gpu: bool
    script: Path
    """In the folder launch/; trains the `Task` in the file given by --task."""

    work: Path
    """An empty folder for their files."""

    @property
    def trained(self) -> Config:
        """The user's settings, but for what does not touch the weights of the first steps, and the number format."""
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

    def file(self, run: Run, kind: str) -> Path:
        """One of the files of a run."""
        return self.work / f"{run.name}.{kind}"


def runs_of(worlds: Sequence[int]) -> list[Run]:
    """The first world is what the others are compared with; it is repeated, exactly and changed by rounding."""
    first = worlds[0]
    return [
        Run(f"{first}", first, is_reference=True),
        Run(f"{first} again", first, is_repeat=True),
        Run(f"{first} nudged", first, is_nudged=True),
        *(Run(f"{size}", size) for size in worlds[1:]),
    ]


def processes(count: int) -> str:
    """1 process, 2 processes."""
    return f"{count} process{'es' * (count != 1)}"


def has_gpus(worlds: Sequence[int]) -> bool:
    """Whether each process of the largest world gets a GPU of its own; else all worlds train on the CPU."""
    return torch.cuda.device_count() >= max(worlds)


def train_all(runs: Sequence[Run], plan: Plan) -> list[Record]:
    """Train one run after the other; the record of each."""
    with progress("training", len(runs) * plan.steps) as bar:
        return [train(run, plan, bar) for run in runs]


def train(run: Run, plan: Plan, bar: ProgressBar) -> Record:
    """Train one run to its end; its record, with loss and gradient norm.

    Raises:
        TrainingError: the run failed; with what it said.
    """
    weights = plan.work / "weights"
    task = Task(
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
        code = _watch(
            _start(run, plan, output), lambda done: bar.advance(done, run.title), plan.file(run, "jsonl")
        )
    if code:
        raise TrainingError(
            f"the run on {run.title} ended with exit code {code}:\n{_cause(plan.file(run, 'log'))}"
        )
    return joined(plan.file(run, "jsonl"), plan.work / "runs" / run.name / METRICS_FILE)


def joined(record: Path, metrics: Path) -> Record:
    """What a run wrote of its steps, and what its metrics.jsonl has of them."""
    of_step = {line["step"]: line for line in _lines(metrics)}
    return [{**of_step.get(line["step"], {}), **line} for line in _lines(record)]


def _start(run: Run, plan: Plan, output: IO[bytes]) -> "subprocess.Popen[bytes]":
    several = "one_node.yaml" if plan.on_gpu else "cpu.yaml"
    name = several if run.world_size > 1 else "one_gpu.yaml"
    file = plan.script.parents[1] / "configs" / "accelerate" / name
    words = ["--config_file", str(file), "--num_processes", str(run.world_size), str(plan.script)]
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "accelerate.commands.launch",
            *words,
            "--task",
            str(plan.file(run, "json")),
        ],
        env=os.environ | ({} if plan.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _watch(process: "subprocess.Popen[bytes]", advance: Callable[[int], None], record: Path) -> int:
    """Tell of the steps as they come into the record until the process ends; its exit code."""
    done = 0
    code: int | None = None
    try:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK_EVERY_S)
            steps = max(0, len(_lines(record)) - 1)  # the first line is of the weights before training
            if steps > done:
                advance(steps - done)
                done = steps
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _lines(file: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file yet."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _cause(log: Path) -> str:
    """The errors that were meant for the user, else the end of the output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"(\[rank \d+\] )?error: ", line)]
    return "\n".join(dict.fromkeys(errors) if errors else lines[-LINES_SHOWN:])
