"""`metrics.jsonl`: all logged values of a run, one JSON object per line."""

import errno
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unetdist.cli import json_records
from unetdist.cli.logs import logger
from unetdist.storage.files import write_text

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """One JSON object per line: {"step": ..., name: value or null}.

    A run that continues from a checkpoint repeats the steps after it. `continue_after` drops their old lines, so that
    each step is in the file once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first_step: int | None = None
        self._unwritten = ""  # lines for which the disk had no room

    def continue_after(self, step: int) -> None:
        """Drop the lines after `step` and an incomplete last line; create the file if it is absent."""
        self._rewrite(lambda values: values["step"] <= step)
        self._first_step = step

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append one line, after those that could not be written before.

        Raises:
            OSError: the line cannot be written. It is kept for the next call, and no part of it is in the file.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._unwritten += json.dumps({"step": step, **finite}, ensure_ascii=False, allow_nan=False) + "\n"
        # A validation that was interrupted is repeated when the run continues, perhaps more than once.
        if step == self._first_step:
            self._rewrite(lambda old: old["step"] != step or old.keys().isdisjoint(values))
        self.flush()

    def flush(self) -> None:
        """Append the lines that could not be written before. Raises OSError if they still cannot be written."""
        if not self._unwritten:
            return
        lines = self._unwritten.encode()
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            if (written := file.write(lines)) < len(lines):
                file.truncate(size)
                raise OSError(errno.ENOSPC, f"room for {written} of {len(lines)} bytes", str(self.path))
        self._unwritten = ""

    def rows(self) -> dict[int, dict[str, float]]:
        """Return all values, by step and name; NaN for those that were not finite."""
        rows: dict[int, dict[str, float]] = {}
        lines = self._lines()
        for number, line in enumerate(lines, start=1):
            values = _values_of(line)
            if math.isfinite(step := values.pop("step")):
                numbers = {name: math.nan if value is None else value for name, value in values.items()}
                rows.setdefault(int(step), {}).update(numbers)
            elif number < len(lines):  # the last line may be one that is being written
                logger.warning("%s, line %d is damaged and left out; its values are lost", self.path, number)
        return rows

    def _rewrite(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        write_text(self.path, "".join(line for line in self._lines() if is_kept(_values_of(line))))

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []


def _values_of(line: str) -> dict[str, Any]:
    """Return the values of a line by name. A line without a step, or cut short, counts as a step after all others."""
    try:
        values: dict[str, Any] = json_records.build(dict[str, float | None], json_records.parse(line))
    except ValueError:
        values = {}
    return values if values.get("step") is not None else {"step": math.inf}
