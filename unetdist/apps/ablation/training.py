"""Train the runs of an ablation that are not finished yet: each in processes of its own, stopped when this one is."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from unetdist.apps.ablation.plan import Run
from unetdist.cli import json_records, settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger
from unetdist.distributed.signals import SignalWatch
from unetdist.storage import files as storage
from unetdist.train.config import Config
from unetdist.train.run_folder import SETTINGS_FILE
from unetdist.train.run_status import STOPPED_EARLY, read_status

LOOK_EVERY_S = 0.1
"""How often the processes are looked at."""

GIVEN_FILE = "ablation.yaml"
"""In the folder of a run: the settings that it is started with; `config.yaml` beside it is written by the run."""

LOG_FILE = "ablation.log"
"""All that the processes of a run said."""

TIME_FILE = "ablation.json"
"""Seconds that its training took, over all attempts."""


@dataclass(kw_only=True)
class Fleet:
    """Trains runs, some at a time.

    Attributes:
        command: what trains, without settings; None: `launch/train.py` in one process.
        scripts: the folder launch/.
        parallel: runs at a time.
        per_image: whether to count the confusion matrix of every validation image when a run is finished.
        failed: why, by run folder; filled while training.
    """

    scripts: Path
    command: Sequence[str] | None = None
    parallel: int = 1
    per_image: bool = False
    failed: dict[Path, str] = field(default_factory=dict)

    def train(self, runs: Sequence[Run], after_each: Callable[[], object]) -> bool:
        """Train what is not done; False where a signal asked to stop, True where nothing is left that can be done.

        A run that fails is noted in `failed`, and the others go on.
        """
        self._running: list[_Process] = []
        waiting = deque(runs)
        with SignalWatch(on_second=self._end_at_once) as watch:
            while (waiting or self._running) and not watch.requested:
                while waiting and len(self._running) < self.parallel:
                    self._start(waiting.popleft())
                time.sleep(LOOK_EVERY_S)
                for process in [each for each in self._running if each.ended()]:
                    self._running.remove(process)
                    code = process.close()
                    if code == 0 and self.next_of(process.run) not in (None, process.words):
                        waiting.appendleft(process.run)
                    else:
                        self._note(process, code)
                        after_each()
            for process in self._running:
                process.signal(signal.SIGTERM)
            for process in self._running:
                process.close()
            return not watch.requested

    def next_of(self, run: Run) -> list[str] | None:
        """The command that a run needs next; None: it is done."""
        if not is_finished(run):
            command = self.command or [sys.executable, str(self.scripts / "train.py")]
            return [*command, "--config", str(run.folder / GIVEN_FILE)]
        if not self.per_image or run.per_image_file.exists():
            return None
        data = run.config.data
        words = ["--model", str(run.folder / "last"), "--data", str(data.val), "--per-image"]
        words += [str(run.per_image_file), "--num-workers", str(data.num_workers)]
        words += ["--mixed-precision", run.config.trainer.mixed_precision]
        return [sys.executable, str(self.scripts / "evaluate.py"), *words]

    def _start(self, run: Run) -> None:
        words = self.next_of(run)
        if words is None:
            return
        values = settings.to_mapping(run.config)
        private = public(values) != values  # the run needs the credentials that others must not read
        storage.write_text(run.folder / GIVEN_FILE, settings.to_yaml(values), private=private)
        logger.info("%s; its output: %s", run.folder, run.folder / LOG_FILE)
        self._running.append(_Process(run, words))

    def _note(self, process: "_Process", code: int) -> None:
        run = process.run
        if code == 0 and self.next_of(run) is None:
            return
        if code == STOPPED_EARLY:
            reason = "it was stopped; the same command continues it"
        elif code == 0:
            reason = "its command ended as if all were well, but the run is not finished"
        else:
            reason = f"exit code {code}: {process.cause()}"
        self.failed[run.folder] = reason
        logger.error("%s failed: %s", run.folder, reason)

    def _end_at_once(self, number: int) -> None:
        for process in self._running:
            process.signal(signal.SIGKILL)
        os._exit(128 + number)


class _Process:
    """A command of a run, and what it starts in turn: a session of its own, so that it hears of Ctrl-C only once."""

    def __init__(self, run: Run, words: Sequence[str]) -> None:
        self.run, self.words = run, list(words)
        self._log = run.folder / LOG_FILE
        self._began = time.monotonic()
        self._is_training = not is_finished(run)
        with open(self._log, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> int:
        """Wait for its end, and add up the time that it took; the exit code."""
        code = self._process.wait()
        if self._is_training:
            seconds = (training_s(self.run) or 0.0) + time.monotonic() - self._began
            storage.write_json(self.run.folder / TIME_FILE, {"training_s": round(seconds, 3)})
        return code

    def cause(self) -> str:
        """The last error of this attempt that was meant for the user, else the last line."""
        text = self._log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
        return errors[-1] if errors else lines[-1] if lines else f"nothing was said; see {self._log}"


def is_finished(run: Run) -> bool:
    """Whether a run was trained to its end with just these settings.

    Where others are asked for the run is started all the same: it knows which may change, and refuses the rest.
    """
    status = read_status(run.folder)
    if status is None or status.state != "finished":
        return False
    file = run.folder / SETTINGS_FILE
    saved = settings.without_retired(settings.read_yaml(file), Config, where=str(file))
    known = settings.laid_over(settings.defaults(Config), saved)
    return not settings.differences(public(known), public(settings.to_mapping(run.config)))


def training_s(run: Run) -> float | None:
    """Seconds from the start to the end of its processes, over all attempts; None where no ablation trained it."""
    try:
        record = json_records.parse(storage.read_file(run.folder / TIME_FILE))
        return json_records.build(dict[str, float], record)["training_s"]
    except (OSError, ValueError, KeyError):
        return None
