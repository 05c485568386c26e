"""What every test is spared: the traces of the one before it."""

import pytest
import torch

from unetdist.logs import logger


@pytest.fixture(autouse=True)
def leave_no_trace():
    """Restore the package's logger and torch's default number format."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    dtype = torch.get_default_dtype()
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
    torch.set_default_dtype(dtype)
