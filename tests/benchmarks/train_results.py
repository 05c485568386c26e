"""A result of training loops as a run would give it."""

from tests.benchmarks.loops.trace import PARTS
from tests.benchmarks.rounds import Measured
from tests.benchmarks.train import Row, TrainCase, TrainResult
from tests.benchmarks.train_report import Limit
from unetdist.model.limit import H200


def made_up_training() -> TrainResult:
    def times(samples):
        return {"samples": samples, "seconds": 0.5, "cpu_seconds": 0.5}

    rows = {
        name: Row(
            name,
            title,
            "bf16",
            first_step_s=40.0,
            loss=1.0,
            split_ms=dict.fromkeys(PARTS, 1.5),
            syncs=0.0,
            peak_gb=4.0,
        )
        for name, title in (
            ("ours bf16", "ours"),
            ("careful bf16", "careful [user]"),
            ("lightning bf16", "Lightning"),
        )
    }
    rounds = [{"ours bf16": times(300), "careful bf16": times(200)} for _ in range(3)]
    void = {"lightning bf16": "python has no module lightning; install: python -m pip install lightning"}
    return TrainResult(TrainCase("classic", 512, 512, 32), 12, rows, Measured(rounds, void), ours="ours bf16")


LIMITS = {"bf16": Limit.of(TrainCase("classic", 512, 512, 32), 12, "bf16", H200)}
