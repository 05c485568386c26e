"""That it measures is shown in tests/launch/test_benchmark.py."""

import argparse

import pytest

from tests.benchmarks import data_command
from unetdist.errors import ConfigError


def test_a_core_that_is_not_ours_is_refused():
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    with pytest.raises(ConfigError, match=r"--core \(9999\) is not among the cores of this process"):
        data_command.run(parser.parse_args(["--core", "9999"]), {})
