import os
from pathlib import Path

import torch

from unetdist.distributed import collectives, hardware
from unetdist.distributed.collectives import World


def test_a_cpu_is_named_with_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    monkeypatch.setattr(collectives, "cpu_model", lambda: "Some CPU")
    assert World().describe() == "1 process on 2 cores of Some CPU"
    assert World(world_size=2).describe() == "2 processes on 2 cores of Some CPU"


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert World(world_size=8, device=torch.device("cuda:0")).describe() == "8 processes on NVIDIA H200"


def test_a_system_without_a_name_for_its_processor_has_a_kind(monkeypatch):
    assert hardware.cpu_model()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor : 0\nmodel name\t: Fast One\n")
    assert hardware.cpu_model() == "Fast One"

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert hardware.cpu_model()
