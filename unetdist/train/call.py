"""`unetdist.train`: a run from Python, in a script or in a notebook."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdist.cli import settings
from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, fresh_accelerator_state
from unetdist.errors import CheckpointError, ConfigError, TrainingError
from unetdist.model.saved_model import find_model, read_config
from unetdist.predict.hub import UNet
from unetdist.train.build import build_trainer
from unetdist.train.config import Config
from unetdist.train.run_folder import name_of_run
from unetdist.train.run_status import STOPPED_EARLY, Status, read_status


@dataclass(frozen=True)
class TrainedRun:
    """The result of `unetdist.train`."""

    folder: Path
    """Folder of the run, with `best`, `last`, checkpoints and `metrics.jsonl`."""

    finished: bool
    """Whether all steps are done."""

    step: int
    """Optimizer steps done."""

    best_miou: float | None
    """Highest validation mIoU, 0..1; None without a validation."""

    def model(self, *, device: str | torch.device = "cpu") -> UNet:
        """Load the weights with the best validation mIoU, or the last ones without a validation."""
        return UNet.from_pretrained(self.folder, device=device)


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None, *, processes: int | None = None, **changes: Any
) -> TrainedRun:
    """Train, or continue the run of this name.

    An interrupt (Ctrl-C) saves a checkpoint and raises KeyboardInterrupt; the same call continues. A second one gives
    up at once. Logging, signal handlers, random generators and torch's settings are restored afterwards.

    Args:
        config: YAML file, or its content as a mapping.
        processes: processes that train on this machine, apart from this one; None: this process trains, alone or, if a
            launcher has started it, as one of several.
        changes: settings that replace those of `config`, by short or full names: `max_steps=100`, `optim={"lr": 0.01}`,
            or `**{"optim.lr": 0.01}`.

    Raises:
        ConfigError: a setting is wrong.
        UnetdistError: whatever else ends a run, in the words of the command line.
    """
    given = {} if config is None else config if isinstance(config, Mapping) else {"config": os.fspath(config)}
    words = [*settings.as_words(given), *settings.as_words(changes)]
    parsed = settings.parse(Config, words, prog="unetdist.train", description="")
    if processes is not None:
        name = name_of_run(parsed.name, World())
        return _train_apart([*words, f"--name={name}"], processes, Path(parsed.runs_dir) / name)
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("unetdist.train is called in a thread, which cannot be interrupted; give it processes=1.")
    with _restored(), build_trainer(parsed, exits_on_second_signal=False) as trainer:
        finished = trainer.fit()
    if trainer.stop.received is not None:
        signal.raise_signal(trainer.stop.received)  # its former handler decides what comes next
    miou = trainer.state.best_miou
    return TrainedRun(trainer.status.run_dir, finished, trainer.state.step, miou if miou >= 0 else None)


@contextmanager
def _restored() -> Iterator[None]:
    """Restore what a training changes for the whole process, except that freed memory stays with it."""
    environment, log = os.environ.copy(), (logger.handlers[:], logger.propagate, logger.level)
    state, numpy_state = random.getstate(), np.random.get_state()
    threads, autotunes = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), fresh_accelerator_state():
        try:
            yield
        finally:
            logger.handlers[:], logger.propagate = log[:2]
            logger.setLevel(log[2])
            os.environ.clear()
            os.environ.update(environment)
            random.setstate(state)
            np.random.set_state(numpy_state)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = autotunes
            torch.use_deterministic_algorithms(deterministic)


def _train_apart(words: list[str], processes: int, folder: Path) -> TrainedRun:
    # Not with Accelerate's notebook_launcher, which forks. The fork hangs in torch if this process had a parallel loop
    # before, and fails if it used a GPU. The launcher also leaves its signal handlers behind.
    command = [sys.executable, "-m", "unetdist", "train", f"--processes={processes}", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    interrupts, error = 0, ""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C would reach it twice
    ) as running:
        assert running.stdout is not None
        while True:
            try:
                for line in running.stdout:
                    # The processes write where a notebook does not look.
                    print(line, end="")
                    if found := re.match(r"(?:\[rank \d+\] )?error: (.*)", line):
                        error = error or found[1]
                break
            except KeyboardInterrupt:
                # The launcher passes the first on to its processes; the second must also end the launcher at once.
                interrupts += 1
                (os.kill if interrupts == 1 else os.killpg)(running.pid, signal.SIGINT)
    if interrupts:
        raise KeyboardInterrupt
    if running.returncode not in (0, STOPPED_EARLY):
        raise TrainingError(error or f"the processes ended with exit code {running.returncode}; see their output.")
    return _in_folder(folder)


def _in_folder(folder: Path) -> TrainedRun:
    """Read the result of a run from its files."""
    status = read_status(folder) or Status()
    try:
        miou = read_config(find_model(folder)).get("metric", {}).get("value")
    except CheckpointError:  # stopped before the first validation
        miou = None
    return TrainedRun(folder, status.state == "finished", status.step, miou)
