"""Freed memory is kept by the process that asks for it, and by none else."""

import multiprocessing
import platform
import resource

import numpy as np
import pytest

from unetdist.distributed.hardware import free_bytes, keep_all_freed, keep_freed

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faults(num_bytes):
    """Page faults while an array comes and goes, after it has come once."""
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(num_bytes, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def faults_of(setting, sizes):
    """Page faults by size in MiB, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_set_and_count, (setting, sizes))


def _set_and_count(setting, sizes):
    if setting in ("all", "all, then some"):
        keep_all_freed()
    if setting in ("some", "all, then some"):
        keep_freed(64 << 20, largest=32 << 20)
    return {size: faults(size << 20) for size in sizes}


@pytest.mark.parametrize(
    ("setting", "kept"),
    [("none", {48: False}), ("all", {48: True, 256: True}), ("all, then some", {16: True, 48: False})],
)
def test_freed_memory_is_used_again_if_that_was_asked_for(setting, kept):
    found = faults_of(setting, list(kept))
    assert {size: count < 100 for size, count in found.items()} == kept


def test_free_memory_is_what_machine_and_container_leave(tmp_path):
    of_machine = free_bytes(tmp_path)
    assert of_machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(tmp_path) > 2**20
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes(tmp_path) == 4000
