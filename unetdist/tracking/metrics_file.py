"""`metrics.jsonl`: all numbers of a run, one JSON object per line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from unetdist.storage import write_text

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """One JSON object per line: {"step": ..., name: value or null}.

    A run that continues from a checkpoint repeats the steps after it: their old lines are dropped, and with
    them a line that a crash cut short, so that nothing stands in the file twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_continued = False

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append one line."""
        if not self._is_continued:
            self._drop_from(step)
            self._is_continued = True
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}, ensure_ascii=False, allow_nan=False) + "\n")

    def _drop_from(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        write_text(self.path, "".join(line for line in lines if _step_of(line) < step))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
