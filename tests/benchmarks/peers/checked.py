"""A contender run on the ruler, as the benchmark does it before it measures."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.contenders import OURS, PEERS, Process
from tests.benchmarks.data import prepare
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.ruler import write_ruler


def check_contender(name: str, folder: Path, module: str | None = None) -> None:
    """Its batches are what was asked for, and it can be timed; skips the test where `module` is not installed."""
    if module is not None:
        pytest.importorskip(module)
    contender = next(contender for contender in (OURS, *PEERS) if contender.name == name)
    write_ruler(folder / "pictures", (96, 128))
    job = Job(str(folder / "pictures"), str(folder / "formats"), crop=64, batch_size=16)
    process = Process(contender, python=sys.executable, core=None, log=folder / "logs" / f"{name}.log")
    try:
        assert prepare(process, job, job, num_classes=2)
        times = process.ask("time", seconds=0.01)
    finally:
        process.close()
    assert times["samples"] >= 16
    assert times["seconds"] >= 0.01
