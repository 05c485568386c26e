"""One command of a user, `accelerate launch ... train ...`, started as often as it takes, and what is left of it."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
SCRIPT = ROOT / "tests" / "long" / "recorded_train.py"
CLUSTER = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_", "RANK", "LOCAL_", "TORCHELASTIC_", "PET_")

DEADLINE_S = 240.0
"""For anything that is waited for: many times what it takes."""


class Launched:
    """One launch, in processes that can be told from all others by a mark in their environment."""

    def __init__(self, run_dir: Path, number: int, world_size: int, words: Sequence[str], **env: str) -> None:
        """Start it; its output goes to a file beside `run_dir`, its record to a folder there."""
        self.number, self.world_size = number, world_size
        self.records = run_dir.with_name(f"{run_dir.name}_record")
        self.log = run_dir.with_name(f"{run_dir.name}_{number}.log")
        self._mark = secrets.token_hex(8)
        marks = {"RECORD": str(self.records), "ATTEMPT": str(number), "MARK": self._mark}
        config = CONFIGS / ("cpu.yaml" if world_size > 1 else "one_gpu.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as output:
            self.launcher = subprocess.Popen(
                [*command, "--num_processes", str(world_size), str(SCRIPT), *words],
                env=environment(**marks, **env),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train, those that are there yet."""
        alone = {} if self.world_size > 1 else {"RANK": "0"}
        return {
            int(env["RANK"]): process
            for process in self.processes()
            if "RANK" in (env := alone | _environment_of(process)) and _parent(process) == self.launcher.pid
        }

    def processes(self) -> list[psutil.Process]:
        """Launcher, ranks, loader workers: all that live, and are not the dead whom nobody asked after."""
        return [
            process
            for process in psutil.process_iter()
            if _environment_of(process).get("MARK") == self._mark and _is_alive(process)
        ]

    def steps(self) -> list[int]:
        """The steps that rank 0 has begun."""
        path = self.records / f"{self.number}.0"
        return [json.loads(line)[0] for line in whole_lines(path)] if path.exists() else []

    def wait_until(self, is_true: Callable[[], bool], every_s: float = 0.01) -> None:
        """Wait for something to happen; an attempt that ends before it fails the test, and so does the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert self.launcher.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(every_s)

    def end(self) -> int:
        """Wait for the end of all of its processes; the exit code of the launcher."""
        code = self.launcher.wait(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while left := self.processes():
            assert time.monotonic() < deadline, f"{left} outlive their launcher\n{self.output()}"
            time.sleep(0.1)
        return code

    def output(self) -> str:
        """All that it wrote."""
        return self.log.read_text(errors="replace")

    def kill_all(self) -> None:
        """Leave nothing behind, whatever the test came to."""
        for process in self.processes():
            process.kill()
        self.launcher.wait()


def train_to_the_end(run_dir: Path, number: int, world_size: int, words: Sequence[str], **env: str) -> None:
    """Launch once, and let nothing happen."""
    launched = Launched(run_dir, number, world_size, words, **env)
    try:
        assert launched.end() == 0, launched.output()
    finally:
        launched.kill_all()


def environment(**more: str) -> dict[str, str]:
    """As in a fresh shell; GPUs hidden, whatever the machine has."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
    return clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def whole_lines(path: Path) -> list[str]:
    """But for one that is being written."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
