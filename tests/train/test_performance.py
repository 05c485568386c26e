"""The choice of the fast path is a pure function of facts."""

import pytest
import torch

from unetdist.distributed.collectives import World
from unetdist.model.config import UNetConfig
from unetdist.train import performance
from unetdist.train.performance import PLAIN, FastPath, choose, prepare


@pytest.fixture
def chosen(monkeypatch):
    """`chosen(**changes)`: the path of a long run of the student network in bf16, on a GPU that has a compiler."""

    def chosen(
        setting="auto", *, device="cuda", has_triton=True, capability=(9, 0), norm="batch", world_size=1, **changes
    ):
        monkeypatch.setattr(performance, "find_spec", lambda name: name if has_triton else None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        run = {"max_steps": 100_000, "global_batch_size": 64, "micro_batch_size": 64, "mixed_precision": "bf16"}
        run |= {"reproducible": False}
        world = World(world_size=world_size, device=torch.device(device))
        return choose(setting, world, UNetConfig(norm=norm), **{"image_size": (480, 352), **run, **changes})

    return chosen


def test_off_is_the_plain_path(chosen):
    assert chosen("off") == PLAIN
    assert (PLAIN.compiler, PLAIN.autotunes, PLAIN.keeps_memory) == (None, False, False)


def test_a_cpu_never_waits_for_a_compiler(chosen):
    path = chosen(device="cpu")
    assert path.compiler is None
    assert path.keeps_memory


def test_a_long_run_on_a_gpu_is_compiled(chosen):
    path = chosen()
    assert (path.compiler, path.cuda_graphs, path.autotunes) == ("inductor", False, True)
    assert path.reason == "compiled"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_steps": 2000}, "only 2000 passes over 10.8 megapixels"),
        ({"max_steps": 20_000, "image_size": (64, 64)}, "only 20000 passes over 0.3 megapixels"),
        ({"has_triton": False}, "needs Triton and a GPU"),
        ({"capability": (6, 1)}, "needs Triton and a GPU"),
        ({"norm": "sync_batch"}, "sync_batch norm communicates"),
    ],
)
def test_what_does_not_pay_or_work_is_not_compiled_and_the_reason_is_told(chosen, changes, reason):
    path = chosen(**changes)
    assert path.compiler is None
    assert not path.cuda_graphs
    assert reason in path.reason


def test_a_run_is_as_long_as_all_its_passes(chosen):
    assert chosen(max_steps=8000, micro_batch_size=16).compiler == "inductor"
    assert chosen(max_steps=8000, micro_batch_size=16, world_size=2).compiler is None
    assert chosen(max_steps=8000, micro_batch_size=16, world_size=2, image_size=(960, 960)).compiler == "inductor"


def test_a_step_that_the_host_cannot_keep_up_with_is_replayed(chosen):
    small = chosen(global_batch_size=16, micro_batch_size=16)
    assert small.cuda_graphs
    assert "2.7 megapixels" in small.reason
    accumulated = chosen(global_batch_size=32, micro_batch_size=16)
    assert not accumulated.cuda_graphs
    assert "trainer.micro_batch_size" in accumulated.reason
    assert chosen(global_batch_size=32, micro_batch_size=16, world_size=2).cuda_graphs


def test_cudnn_tries_as_many_kernels_as_torch_lets_it(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    before = torch.backends.cudnn.benchmark_limit  # None where there is no cuDNN
    prepare(FastPath(autotunes=True))
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark_limit == before


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_a_reproducible_run_has_deterministic_kernels_and_tries_none(chosen, setting, monkeypatch):
    path = chosen(setting, reproducible=True)
    assert (path.is_deterministic, path.autotunes) == (True, False)
    assert not chosen(setting).is_deterministic
    switched = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", switched.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare(chosen())
    assert switched == []
    prepare(path)
    assert switched == [True]


def test_a_faster_number_format_is_told_of(chosen):
    assert "mixed_precision: bf16" in chosen(mixed_precision="no").reason
    assert "mixed_precision" not in chosen().reason
