import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "gpu_check.sh"


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(SCRIPT)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"gpu_check: {sys.executable} has no torch that sees a GPU; nothing was checked\n"
    assert list(tmp_path.iterdir()) == []
