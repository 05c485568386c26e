"""Arguments that all programs have."""

from argparse import Namespace

import pytest

from tests.benchmarks.train import TrainCase


@pytest.fixture(scope="session")
def no_images():
    """Options of a program that measures drawn pictures."""
    return Namespace(images=None, masks=None, labels=None, case=TrainCase("student", 32, 24, 2))
