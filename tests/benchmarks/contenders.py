"""Who is compared, and each of them as a process that does one thing at a time when it is told to."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).parents[2]

ONE_THREAD = dict.fromkeys(
    (
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
        *("OPENCV_FOR_THREADS_NUM", "ARROW_NUM_THREADS", "RAYON_NUM_THREADS"),
    ),
    "1",
)

IDLE_S = 0.05
"""A process that used no CPU time for as long has finished what it prepares ahead."""
SETTLE_S = 3.0
"""Longest wait for that."""

LONGEST_REASON = 300
"""Characters of an error that go into the table; the log has all."""


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    """As `--against` takes it."""
    title: str
    module: str
    """Python module that serves the rounds."""
    packages: tuple[str, ...] = ()
    """What `pip install` needs to be given; none for ours."""
    arguments: tuple[str, ...] = ()


OURS = Contender("ours", "ours", "tests.benchmarks.ours")

_PEERS = "tests.benchmarks.peers"

PEERS = (
    Contender("foreign", "ours, foreign shards", "tests.benchmarks.ours", arguments=("foreign",)),
    Contender(
        "webdataset",
        'webdataset .decode("pil")',
        f"{_PEERS}.webdataset_pil",
        ("torch", "pillow", "webdataset"),
    ),
    Contender(
        "streaming",
        "MosaicML Streaming (MDS) + PIL",
        f"{_PEERS}.streaming_pil",
        ("torch", "pillow", "mosaicml-streaming", "transformers"),
    ),
    Contender("litdata", "LitData + PIL", f"{_PEERS}.litdata_pil", ("torch", "pillow", "litdata")),
    Contender(
        "datasets", "HF datasets, map-style", f"{_PEERS}.datasets_map", ("torch", "pillow", "datasets")
    ),
    Contender(
        "datasets-streaming",
        "HF datasets, streaming",
        f"{_PEERS}.datasets_streaming",
        ("torch", "pillow", "datasets"),
    ),
    Contender("files-pil", "files + PIL", f"{_PEERS}.files_pil", ("torch", "pillow")),
    Contender(
        "files-opencv", "files + OpenCV", f"{_PEERS}.files_opencv", ("torch", "opencv-python-headless")
    ),
    Contender("dali", "NVIDIA DALI on CPU", f"{_PEERS}.dali_cpu", ("nvidia-dali-cuda120",)),
    Contender(
        "dali-unfiltered",
        "NVIDIA DALI on CPU, our masks",
        f"{_PEERS}.dali_cpu",
        ("nvidia-dali-cuda120",),
        arguments=("unfiltered",),
    ),
)
"""All that `--against` knows, in the order of the table."""


class VoidError(Exception):
    """A contender that cannot be measured; the message goes into its row."""


class Process:
    """A contender at work: started idle, busy only between a request and its reply."""

    def __init__(
        self,
        contender: Contender,
        *,
        python: str,
        core: int | None,
        log: Path,
        variables: Mapping[str, str] = ONE_THREAD,
    ) -> None:
        """Start it.

        Args:
            contender: what to run.
            python: of the environment that holds the others' packages.
            core: the one that the process may use; None: all.
            log: file for what it prints.
            variables: added to the environment.
        """
        self.contender = contender
        self.python = sys.executable if not contender.packages else python
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [self.python, "-W", "ignore", "-m", contender.module, *contender.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)},
            )
        if core is not None:
            os.sched_setaffinity(
                self._process.pid, {core}
            )  # Before it has a thread or a child to inherit from it.

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have one thing done, and wait until the process rests again; `VoidError` where it cannot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # The log says why.
        line = self._process.stdout.readline()
        if not line:
            raise VoidError(f"its process ended: {self._last_words()} (all of it in {self.log})")
        reply = json.loads(line)
        if isinstance(reply, dict) and "error" in reply:
            raise VoidError(self._explain(reply))
        self._settle()
        return reply

    def open(self, job: "DataclassInstance") -> Any:
        """Prepare the contender's format and start it on a job."""
        return self.ask("open", **asdict(job))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _settle(self) -> None:
        """Wait until no thread or child of the process works ahead on the core that the next one gets."""
        deadline = time.monotonic() + SETTLE_S
        used, last = self._cpu_s(), -1.0
        while used != last and time.monotonic() < deadline:
            time.sleep(IDLE_S)
            last, used = used, self._cpu_s()

    def _cpu_s(self) -> float:
        total = 0.0
        try:
            process = psutil.Process(self._process.pid)
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            pass
        return total

    def _explain(self, reply: dict[str, Any]) -> str:
        if reply["missing"]:
            packages = " ".join(self.contender.packages) or reply["missing"]
            return f"{self.python} has no module {reply['missing']}; install: {self.python} -m pip install {packages}"
        return f"{reply['error'][:LONGEST_REASON]} (more in {self.log})"

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"
