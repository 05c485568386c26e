"""Training loops are timed and looked into on a GPU as on a CPU."""

import io
import json
import sys
from dataclasses import asdict

import pytest
import torch
from torch.profiler import record_function

from tests.benchmarks.loops import accelerate_loop, amp_loop
from tests.benchmarks.loops.looped import check_learning
from tests.benchmarks.loops.protocol import serve, waited
from tests.benchmarks.loops.test_protocol import JOB
from tests.benchmarks.ours import transfer_time

pytestmark = pytest.mark.gpu


def test_waits_for_the_gpu_are_counted_and_its_time_is_split(monkeypatch, capfd):
    def train(job, after_step):
        weight = torch.rand(2048, 2048, device="cuda", requires_grad=True)
        for _ in waited(range(1_000_000)):
            with record_function("step: copy"):
                given = torch.rand(2048, 2048).to("cuda")
            with record_function("step: forward"):
                loss = (given @ weight).sum()
            with record_function("step: backward"):
                loss.backward()
            loss.item()
            after_step(lambda: 0.0)

    requests = [{"do": "open", **asdict(JOB)}, {"do": "syncs", "steps": 4}, {"do": "split", "steps": 4}]
    lines = "".join(json.dumps(request) + "\n" for request in [*requests, {"do": "facts"}])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    serve(train)
    replies = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    _, syncs, split, facts = replies
    assert syncs["syncs"] >= 1  # item, and the copy from memory that is not page-locked
    assert min(split["copy"], split["forward"], split["backward"]) > 0  # backward runs in a thread of its own
    assert facts["peak_gb"] > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loop", [accelerate_loop, amp_loop], ids=["accelerate", "amp"])
def test_they_learn(tmp_path, loop, precision):
    check_learning(loop.train, tmp_path, "default", precision=precision)


def test_a_batch_is_copied_to_the_gpu():
    assert transfer_time((torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)), 3) > 0
