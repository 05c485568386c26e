import argparse

import pytest

from unetdist.errors import ConfigError
from unetdist.model.inference import InferenceConfig
from unetdist.model.inference_options import add_inference_options, inference_of


def told(*words):
    parser = argparse.ArgumentParser()
    add_inference_options(parser)
    return inference_of(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {}),
        ("--window 512 640 --overlap 0.25", {"window": (512, 640), "overlap": 0.25}),
        ("--tta", {"flips": True, "scales": (0.75, 1.0, 1.25)}),
        ("--tta --scales 1", {"flips": True}),
        ("--scales 1 1.5", {"scales": (1.0, 1.5)}),
    ],
)
def test_options_become_settings(words, values):
    assert told(*words.split()) == InferenceConfig(**values)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match=r"inference.overlap \(1.0\) must be .* below 1; use 0.5"):
        told("--overlap", "1")
