import mmap
import subprocess
import sys

import torch

from unetdist.apps.doctor.memory import Peak, peak_of_process

MUCH = 1 << 28


def test_the_peak_is_seen_when_it_is_over():
    with Peak(torch.device("cpu")) as before:
        pass
    with Peak(torch.device("cpu")) as peak, mmap.mmap(-1, MUCH) as memory:
        for start in range(0, MUCH, mmap.PAGESIZE):
            memory[start] = 1
    assert peak.device_bytes == 0
    assert peak.host_bytes > before.host_bytes + 0.9 * MUCH
    assert peak_of_process() > 0


def test_children_count():
    code = f"x = bytearray(b'x' * {MUCH}); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        with Peak(torch.device("cpu")) as peak:
            pass
        child.communicate("\n")
    with Peak(torch.device("cpu")) as alone:
        pass
    assert peak.host_bytes > alone.host_bytes + 0.9 * MUCH - (1 << 26)
