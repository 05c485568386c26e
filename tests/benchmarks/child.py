"""Run a function of a contender in a fresh process: `-m tests.benchmarks.child FUNCTION ARGUMENTS RESULT [CORES]`.

Contenders may run in another environment, so this module imports the standard library only.
"""

import json
import os
import re
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

STARTED = time.time()


def main() -> None:
    """Call FUNCTION (MODULE:NAME) with the keyword arguments in ARGUMENTS (JSON); write what it returns to RESULT."""
    function, arguments, result, *cores = sys.argv[1:]
    if cores:  # Before there are threads and children that would not inherit it.
        os.sched_setaffinity(0, map(int, cores))
    try:
        module, name = function.split(":")
        found = getattr(import_module(module), name)(**json.loads(arguments))
    except Exception as error:
        traceback.print_exception(error)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        found = {"error": f"{type(error).__name__}: {error}", "missing": missing}
    Path(result).write_text(json.dumps(found), encoding="utf-8")


def versions_of(packages: list[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def peak_mib() -> float:
    """Peak memory of this process in MiB."""
    # getrusage would also count the process that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
