"""launch/equivalence.py, from the command line to the verdict, with real launches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.equivalence_runs import values_of, write_data
from unetdist.cli import settings
from unetdist.storage.files import write_text

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


def typed(folder: Path, *words: str, width: int = 80) -> tuple[int, str]:
    """Exit code and output, of a terminal of `width` columns."""
    done = subprocess.run(
        [sys.executable, "launch/equivalence.py", "--config", str(folder / "config.yaml"), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(width), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    write_text(tmp_path / "config.yaml", settings.to_yaml(values_of(tmp_path)))
    return tmp_path


def test_one_two_and_four_processes_train_the_same_bits(folder):
    code, output = typed(folder, "--world", "1,2,4", "--steps", "5", "--trainer.micro_batch_size", "null")
    assert code == 0, output
    assert "trainer.micro_batch_size: 3" in output
    assert "As promised" in output
    assert output.count(" equal ") == 2 * 6
    assert not (folder / "runs").exists()


def test_three_processes_may_differ_and_are_named(folder):
    code, output = typed(folder, "--world", "1,3", "--steps", "3")
    assert code == 0, output
    assert "- 3 processes" in output
    assert "3 processes, step 1" in output


def test_a_run_that_fails_shows_its_reason(folder):
    code, output = typed(folder, "--world", "1,2", "--optim.warmup_steps", "500")
    assert code == 1
    assert "optim.warmup_steps (500) must be below" in output
    assert "error: the run on 1 process ended with exit code 1" in output
