"""Runs restarting.py under a launcher that restarts it, and reads what it left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "accelerate" / "cpu.yaml"
SCRIPT = ROOT / "tests" / "distributed" / "restarting.py"


def start_restarting(
    folder: Path, *, seed: int, how: str, max_restarts: int, num_processes: int = 2, out: int | IO[str]
) -> subprocess.Popen[str]:
    """`accelerate launch` in an environment as in a fresh shell, with both outputs in `out`."""
    cluster = ("ACCELERATE_", "SLURM_", "MASTER_", "WORLD_", "RANK", "LOCAL_", "TORCHELASTIC_", "PET_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    env.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HOME="/nonexistent")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    options = ["--num_processes", str(num_processes), "--max_restarts", str(max_restarts)]
    words = [*command, *options, str(SCRIPT), str(folder), str(seed), how]
    return subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)


def run_restarting(folder: Path, *, num_processes: int = 2, max_restarts: int, **options: Any) -> str:
    """Run to the end, which each rank must have reached in the last attempt; returns the output."""
    options |= {"num_processes": num_processes, "max_restarts": max_restarts}
    launcher = start_restarting(folder, **options, out=subprocess.PIPE)
    try:
        output, _ = launcher.communicate(timeout=500)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, output
    ends = {int((folder / f"end_{rank}").read_text().split()[0]) for rank in range(num_processes)}
    assert ends == {max_restarts}, output
    return output
