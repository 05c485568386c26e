"""Runs restarting.py under a launcher that restarts it, and reads what it left."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "accelerate" / "cpu.yaml"
SCRIPT = ROOT / "tests" / "distributed" / "restarting.py"


def run_restarting(folder: Path, *, seed: int, how: str, max_restarts: int, num_processes: int = 2) -> str:
    """Run to the end, which each rank must have reached in the last attempt; returns the output."""
    cluster = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_", "RANK", "LOCAL_", "TORCHELASTIC_", "PET_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    clean.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HOME="/nonexistent")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    options = ["--num_processes", str(num_processes), "--max_restarts", str(max_restarts)]
    done = subprocess.run(
        [*command, *options, str(SCRIPT), str(folder), str(seed), how],
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    ends = {int((folder / f"end_{rank}").read_text().split()[0]) for rank in range(num_processes)}
    assert ends == {max_restarts}, done.stdout
    return done.stdout
