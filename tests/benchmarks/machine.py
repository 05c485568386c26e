"""What a number was measured on."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unetdist.distributed.hardware import cpu_model, num_cores

ROOT = Path(__file__).parents[2]


def machine_facts(command: Sequence[str]) -> dict[str, Any]:
    """Date, commit, processor, cores, load and command line."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_model(),
        "cores": num_cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "command": shlex.join([Path(sys.executable).name, *command]),
    }


def _commit() -> str | None:
    """Hash of the checkout, with a plus sign where files were changed; None outside of one."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", "unetdist", "launch"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit
