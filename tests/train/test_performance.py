"""The choice of the fast path is a pure function of facts."""

from dataclasses import replace

import pytest
import torch

from unetdist.distributed.collectives import World
from unetdist.model.unet import UNetConfig
from unetdist.train import performance
from unetdist.train.performance import LAUNCH_BOUND_S, PLAIN, Facts, FastPath, choose, gather, prepare

GPU = Facts(
    device_type="cuda", has_compiler=True, is_one_graph=True, run_s=3600.0, step_s=0.080, mixed_precision="bf16"
)


def test_off_is_the_plain_path():
    assert choose("off", GPU) is PLAIN
    assert (PLAIN.compiler, PLAIN.autotunes, PLAIN.keeps_memory) == (None, False, False)


def test_a_cpu_never_waits_for_a_compiler():
    path = choose("auto", replace(GPU, device_type="cpu"))
    assert path.compiler is None
    assert path.keeps_memory


def test_a_long_run_on_a_gpu_is_compiled():
    path = choose("auto", GPU)
    assert (path.compiler, path.cuda_graphs, path.autotunes) == ("inductor", False, True)
    assert str(path) == "compiled"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_s": 120.0}, "training takes only about 120 s"),
        ({"has_compiler": False}, "needs Triton and a GPU"),
        ({"is_one_graph": False}, "sync_batch norm communicates"),
    ],
)
def test_what_does_not_pay_or_work_is_not_compiled_and_the_reason_is_told(changes, reason):
    path = choose("auto", replace(GPU, step_s=0.001, **changes))
    assert path.compiler is None
    assert not path.cuda_graphs
    assert reason in str(path)


def test_a_step_that_the_host_cannot_keep_up_with_is_replayed():
    assert choose("auto", replace(GPU, step_s=0.002)).cuda_graphs
    accumulated = choose("auto", replace(GPU, step_s=0.004, num_micro_batches=2))
    assert not accumulated.cuda_graphs
    assert "trainer.micro_batch_size" in str(accumulated)


def test_cudnn_tries_as_many_kernels_as_torch_lets_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    before = torch.backends.cudnn.benchmark_limit  # None where there is no cuDNN
    prepare(FastPath(autotunes=True))
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark_limit == before


def test_a_faster_number_format_is_told_of():
    assert "mixed_precision: bf16" in str(choose("auto", replace(GPU, mixed_precision="no")))
    assert "mixed_precision" not in str(choose("auto", GPU))


def test_facts_are_gathered_from_the_run():
    made = gather(
        World(world_size=2, local_world_size=2),
        model_config=UNetConfig(preset="student", norm="sync_batch"),
        num_classes=12,
        image_size=(480, 352),
        max_steps=1000,
        global_batch_size=64,
        micro_batch_size=16,
        mixed_precision="bf16",
    )
    assert (made.device_type, made.has_compiler, made.is_one_graph) == ("cpu", False, False)
    assert made.num_micro_batches == 2
    assert made.run_s == 1000 * 2 * LAUNCH_BOUND_S  # the device would need 4.6 ms for a pass
    assert 32 / made.step_s == pytest.approx(5300, rel=0.05)


@pytest.mark.parametrize(
    ("capability", "has_triton", "expected"), [((9, 0), True, True), ((6, 1), True, False), ((9, 0), False, False)]
)
def test_inductor_needs_triton_and_a_gpu_that_it_supports(monkeypatch, capability, has_triton, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(performance, "find_spec", lambda name: name if has_triton else None)
    assert performance._has_compiler(torch.device("cuda")) == expected
