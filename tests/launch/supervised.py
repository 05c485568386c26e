"""A real run under launch/supervise.py, as a user types it, and all the processes that it consists of."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.long.launched import CONFIGS, ROOT, environment
from tests.synthetic import write_shards
from unetdist.train.run_status import STEP_FILE, Status, read_status

DEADLINE_S = 240.0
"""For anything that is waited for: many times what it takes."""

MAX_STEPS = 1_000_000
"""More than any test waits for: such a run ends by what happens to it."""


class Supervised:
    """One supervisor, its launcher and the `world_size` processes that train."""

    def __init__(self, folder: Path, world_size: int = 2, *, max_steps: int = MAX_STEPS) -> None:
        """Start it, or go on, with the run in `folder`/run; all that is printed goes to `folder`/log."""
        self.run_dir, self.world_size = folder / "run", world_size
        self._log = folder / "log"
        if not (folder / "train").exists():
            write_shards(folder / "train", 11)
        words = (
            f"--runs_dir {folder} --data.train {folder / 'train'} --data.num_workers 1 --augment.crop_size [16,16] "
            "--model.widths [4,8] --trainer.global_batch_size 4 --trainer.log_every 1 --checkpoint.save_every 5 "
            f"--tracking.tracker none --trainer.max_steps {max_steps}"
        ).split()
        config = CONFIGS / ("cpu.yaml" if world_size > 1 else "one_gpu.yaml")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        launch += ["--num_processes", str(world_size), str(ROOT / "launch" / "train.py"), *words]
        with open(self._log, "ab") as log:
            self.supervisor = psutil.Popen(
                [sys.executable, str(ROOT / "launch" / "supervise.py"), "--max-restarts", "3", "--", *launch],
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def launcher(self) -> psutil.Process:
        """What the supervisor started, while it trains."""
        return self.supervisor.children()[0]

    def ranks(self) -> list[psutil.Process]:
        """What the launcher started, while it trains."""
        return self.launcher().children()

    def status(self) -> Status:
        """Of the run, once it has one."""
        status = read_status(self.run_dir)
        assert status is not None, self.output()
        return status

    def train_beyond(self, step: int, *, attempt: int) -> None:
        """Wait until the run has begun more than so many steps, in its attempt of that number, counted from 1."""
        self.wait_until(lambda: self._is_beyond(step, attempt))

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something to happen; a supervisor that ends before it fails the test, and so does the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert self.supervisor.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def end(self) -> int:
        """Wait for its end; its exit code."""
        return self.supervisor.wait(DEADLINE_S)

    def output(self) -> str:
        """All that was printed."""
        return self._log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """All that live now."""
        return [self.supervisor, *self.supervisor.children(recursive=True)]

    def _is_beyond(self, step: int, attempt: int) -> bool:
        status = read_status(self.run_dir)
        begun = (self.run_dir / STEP_FILE).read_text() if status and status.attempts == attempt else ""
        return int(begun or 0) > step


@contextmanager
def train_supervised(
    folder: Path, world_size: int = 2, *, max_steps: int = MAX_STEPS
) -> Iterator[Supervised]:
    """A supervised run of which nothing is left afterwards, whatever happened."""
    run = Supervised(folder, world_size, max_steps=max_steps)
    try:
        yield run
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in run.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        run.supervisor.wait()


def survivors(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that had not ended by themselves after much time; by now they have."""
    left = psutil.wait_procs(processes, timeout=DEADLINE_S)[1]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return left
