"""Freed memory is kept by the process that asks for it, and by none else."""

import multiprocessing
import platform
import resource

import numpy as np
import pytest

from unetdist.distributed.malloc import free_bytes, keep_all_freed, keep_freed

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faults(num_bytes):
    """Page faults while an array comes and goes, after it has come once."""
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(num_bytes, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_a_process_of_its_own(setting, num_bytes):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_set_and_count, (setting, num_bytes))


def _set_and_count(setting, num_bytes):
    if setting in ("all", "all, then some"):
        keep_all_freed()
    if setting in ("some", "all, then some"):
        keep_freed(64 << 20, largest=32 << 20)
    return faults(num_bytes)


@pytest.mark.parametrize(
    ("setting", "megabytes", "is_kept"),
    [
        ("none", 48, False),
        ("all", 48, True),
        ("all", 256, True),
        ("some", 16, True),
        ("some", 48, False),
        ("all, then some", 48, False),
    ],
)
def test_freed_memory_is_used_again_where_that_was_asked_for(setting, megabytes, is_kept):
    assert (in_a_process_of_its_own(setting, megabytes << 20) < 100) == is_kept


def test_free_memory_is_what_machine_and_container_leave(tmp_path):
    of_machine = free_bytes(tmp_path)
    assert of_machine > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_bytes(tmp_path) > 2**20
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes(tmp_path) == 4000
