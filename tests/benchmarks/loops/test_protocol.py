"""A loop that is told what to do, in this process."""

import io
import json
import sys
from dataclasses import asdict

import pytest
import torch
from torch.profiler import record_function

from tests.benchmarks.loops.protocol import TrainJob, serve, waited

JOB = TrainJob(
    pictures="pictures",
    shards="shards",
    work="work",
    height=8,
    width=8,
    batch_size=4,
    num_classes=2,
    widths=[2, 4],
    precision="fp32",
    num_workers=0,
    lr=0.1,
)


@pytest.fixture
def replies_to(monkeypatch, capfd):
    """What `train` replies to requests."""

    def run(train, *requests, packages=()):
        lines = [json.dumps(request) + "\n" for request in ({"do": "open", **asdict(JOB)}, *requests)]
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(lines)))
        serve(train, *packages)
        return [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]

    return run


def counting(job, after_step):
    """Losses 0, 1, 2, ..."""
    for number in waited(range(1_000_000)):
        with record_function("step: forward"):
            torch.ones(64, 64) @ torch.ones(64, 64)
        after_step(lambda number=number: float(number))


def test_each_request_gets_its_reply(replies_to):
    first, checked, timed, split, syncs, facts = replies_to(
        counting,
        {"do": "check", "steps": 10},
        {"do": "time", "seconds": 0.01},
        {"do": "split", "steps": 2},
        {"do": "syncs", "steps": 2},
        {"do": "facts"},
        packages=("torch", "no-such-package"),
    )
    assert first["first_step_s"] > 0
    assert checked == {"loss": 9.5}  # of steps 9 and 10: step 0 came before
    assert timed["samples"] >= 4
    assert timed["seconds"] >= 0.01
    assert split["forward"] > 0
    assert split["data"] > 0
    assert syncs == {"syncs": None} or torch.cuda.is_available()
    assert facts["peak_gb"] > 0
    assert list(facts["versions"]) == ["torch"]


def test_an_error_of_the_loop_is_a_reply(replies_to):
    def train(job, after_step):
        raise ValueError(f"no pictures in {job.pictures}")

    assert replies_to(train) == [{"error": "ValueError: no pictures in pictures", "missing": None}]


def test_a_missing_package_is_named(replies_to):
    def train(job, after_step):
        import no_such_package  # noqa: F401

    (reply,) = replies_to(train)
    assert reply["missing"] == "no_such_package"


def test_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    serve(counting)
