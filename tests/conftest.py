"""What every test is spared: the traces of the one before it, and a GPU that it does not ask for."""

import logging
import os
import signal
from contextlib import suppress

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from unetdist.cli.logs import logger

with suppress(ImportError):  # a bare machine with a GPU has no Hypothesis
    import hypothesis

    # A busy machine takes 200 ms for anything, and no test is one of speed. FUZZ_EXAMPLES=1000 searches for longer.
    hypothesis.settings.register_profile(
        "any machine",
        deadline=None,
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", 30)),
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("any machine")

# A shell lets its background jobs ignore Ctrl-C, which the processes of tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def leave_no_trace():
    """Each test finds the package's logger as it was imported, and torch's default number format."""
    dtype = torch.get_default_dtype()
    forget_the_log()  # a fixture of a whole module may have set it up
    yield
    forget_the_log()
    torch.set_default_dtype(dtype)


def forget_the_log():
    """Where the logger does not propagate pytest listens to it itself, and hears twice what a test lets through."""
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(autouse=True)
def only_gpu_tests_see_a_gpu(request, monkeypatch):
    """The other tests do the same on every machine, in this process and in those that they start."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def accelerator():
    """One on the CPU, and no trace of it afterwards."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
