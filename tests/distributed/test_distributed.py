import logging
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

import unetdist.distributed.collectives as distributed
from tests.distributed.launcher import RankError, run_ranks
from unetdist.cli.logs import set_up_logging
from unetdist.distributed.collectives import (
    World,
    all_reduce_min,
    all_reduce_sum,
    any_rank,
    barrier,
    broadcast,
    gather_to,
    log_ranks,
    make_accelerator,
    seed_everything,
    world_of,
)
from unetdist.distributed.signals import StopSignal
from unetdist.errors import ConfigError


def collectives() -> tuple[torch.Tensor, torch.Tensor, bool, bool, int]:
    rank = dist.get_rank()
    counts = torch.tensor([2**53 + rank, rank], dtype=torch.int64)
    returned = all_reduce_sum(counts)
    assert returned is counts
    shares = all_reduce_sum(torch.full((2,), 0.1, dtype=torch.float64))
    barrier()
    return counts, shares, any_rank(rank == 1), any_rank(False), all_reduce_min(2**62 - rank)


@pytest.mark.parametrize("world_size", [1, 4])
def test_collectives_sum_and_or(world_size):
    for counts, shares, one, none, smallest in run_ranks(collectives, world_size):
        ranks = range(world_size)
        assert counts.tolist() == [sum(2**53 + rank for rank in ranks), sum(ranks)]
        assert shares.tolist() == pytest.approx([0.1 * world_size] * 2, rel=1e-15)
        assert one is (world_size > 1)
        assert none is False
        assert smallest == 2**62 - (world_size - 1)


CHOICE = {"name": "step_00000042.safetensors", "loss": [0.1, 1e-310, None], "größe": 2**60}


def told_by_rank_zero() -> list:
    rank = dist.get_rank()
    return [broadcast(CHOICE if rank == 0 else "longer or shorter, never sent"), broadcast(rank), broadcast("")]


def test_broadcast_tells_the_value_of_rank_zero():
    assert run_ranks(told_by_rank_zero, 3) == [[CHOICE, 0, ""]] * 3
    assert broadcast((1, CHOICE)) == [1, CHOICE]


def gathered(owner: int) -> list[list[int]]:
    columns = torch.full((2, 2), dist.get_rank())[:, 0]
    return [part.tolist() for part in gather_to(owner, columns)]


@pytest.mark.parametrize("owner", [0, 2])
def test_gather_on_hands_the_tensors_of_all_ranks_to_one(owner):
    expected = [[[0, 0], [1, 1], [2, 2]] if rank == owner else [] for rank in range(3)]
    assert run_ranks(gathered, 3, owner) == expected


def test_without_a_process_group_collectives_change_nothing():
    tensor = torch.tensor([3])
    assert all_reduce_sum(tensor) is tensor
    assert tensor.item() == 3
    assert any_rank(True) is True
    assert any_rank(False) is False
    assert gather_to(0, tensor) == [tensor]
    barrier()


def accelerated() -> tuple[World, int, bool, dict[str, torch.Tensor]]:
    accelerator = make_accelerator(mixed_precision="bf16", timeout_s=20)
    world = world_of(accelerator)
    seed_everything(0)
    model = accelerator.prepare(torch.nn.BatchNorm1d(1))
    model(torch.full((4, 1), float(world.rank)))
    buffers = accelerator.unwrap_model(model).state_dict()
    return world, accelerator.gradient_accumulation_steps, accelerator.mixed_precision == "bf16", buffers


@pytest.mark.parametrize("world_size", [1, 2])
def test_accelerator_knows_every_process_and_keeps_to_itself(world_size):
    results = run_ranks(accelerated, world_size)
    for rank, (world, accumulation, is_bf16, buffers) in enumerate(results):
        assert world == World(rank=rank, world_size=world_size, local_world_size=world_size, device=torch.device("cpu"))
        assert world.is_main is (rank == 0)
        assert accumulation == 1
        assert is_bf16
        assert buffers["running_mean"].item() == pytest.approx(0.1 * rank)  # each rank its own: none broadcast


def test_every_rank_introduces_itself(capsys):
    for rank in (0, 3):
        set_up_logging(rank=rank, world_size=4)
        log_ranks(World(rank=rank, world_size=4))
    node = os.uname().nodename
    assert capsys.readouterr().err.splitlines() == [
        f"rank {rank} of 4: node {node}, process {os.getpid()}, cpu, no backend" for rank in (0, 3)
    ]


def late_accelerator() -> None:
    from accelerate import PartialState

    dist.destroy_process_group()
    del os.environ["LOCAL_RANK"]
    PartialState(cpu=False)
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    make_accelerator()


def test_unconnected_processes_are_refused():
    text = r"(?s)WORLD_SIZE is 2, but Accelerate connected 1 process\(es\).*before anything else"
    with pytest.raises(RankError, match=text):
        run_ranks(late_accelerator, 2)


def test_fp16_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"mixed_precision \(fp16\) must be no or bf16 on a CPU.*silently"):
        make_accelerator(mixed_precision="fp16")


@pytest.mark.parametrize(("has_units", "warnings"), [(False, 1), (True, 0)])
def test_bf16_without_units_is_warned_of_with_its_cost(monkeypatch, caplog, has_units, warnings):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_units)
    monkeypatch.setattr(distributed.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(logging.getLogger("unetdist"), "propagate", True)
    distributed._check_cpu_precision("bf16")
    assert sum("2 to 7 times slower" in message for message in caplog.messages) == warnings


def test_seed_fixes_every_generator():
    def draw() -> tuple[float, float, float]:
        seed_everything(2**40 + 1)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def wait_until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "did not happen within 5 s"
        time.sleep(0.005)


def agree_on_rank_one() -> tuple[bool, bool]:
    rank = dist.get_rank()
    with StopSignal() as stop:
        before = any_rank(stop.requested)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: stop.requested)
        return before, any_rank(stop.requested)


def test_a_signal_on_one_rank_stops_all():
    assert run_ranks(agree_on_rank_one, 3) == [(False, True)] * 3
