"""launch/doctor.py as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.apps.doctor.cases import write_data

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "doctor.py"


def run(folder, *words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )


@pytest.mark.slow
def test_settings_that_are_refused_are_one_finding_among_others(tmp_path):
    write_data(tmp_path)
    done = run(tmp_path, "--data.train", "train", "--trainer.max_stepz", "9", "--json", "found.json")
    assert done.returncode == 1, done.stderr
    assert "did you mean 'trainer.max_steps'?" in done.stdout
    assert "  ok       memory  " in done.stdout
    assert done.stderr == ""
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["what"] for each in found["findings"] if each["level"] == "problem"] == ["settings"]


def test_help_reads_as_documentation():
    text = SCRIPT.read_text()
    assert "accelerate launch launch/doctor.py --config" in text.split('"""')[1]
