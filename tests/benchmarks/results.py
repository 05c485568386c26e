"""A result as a run would give it."""

from tests.benchmarks.data import Result
from tests.benchmarks.rounds import Measured
from tests.benchmarks.source import Case


def times(samples):
    return {"samples": samples, "seconds": 2.0, "cpu_seconds": 1.9}


def made_up_result(**changes) -> Result:
    rounds = [{"ours": times(1600), "files-pil": times(400)}, {"ours": times(1800), "files-pil": times(450)}]
    measured = Measured(
        rounds, {"dali": "python has no module nvidia; install: python -m pip install [dali]"}
    )
    titles = {"ours": "ours", "files-pil": "files + PIL", "dali": "NVIDIA DALI on CPU"}
    versions = {"ours": {"torch": "2"}, "files-pil": {"pillow": "13"}}
    return Result(Case(480, 360, 256), 2000, measured, versions, titles=titles, **changes)
