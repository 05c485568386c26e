import argparse
from pathlib import Path

import pytest

from tests.benchmarks import arguments
from tests.benchmarks.source import Case


def test_words_become_values():
    assert arguments.parse_case("480x360:256") == Case(480, 360, 256)
    assert arguments.parse_workers("1,2") == (1, 2)
    assert arguments.parse_workers("none") == ()
    assert arguments.positive("3") == 3
    assert arguments.positive_seconds(".5") == 0.5
    parser = argparse.ArgumentParser()
    arguments.add_out(parser)
    assert parser.parse_args([]).out == Path("runs/benchmark")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (arguments.parse_case, "480", "invalid WxH:CROP value: '480'; use 480x360:256"),
        (arguments.parse_workers, "0", "invalid list of workers: '0'; use 1,2"),
        (arguments.positive, "-1", "invalid count: '-1'; use a whole number over 0"),
        (arguments.positive_seconds, "0.0", "invalid seconds: '0.0'; use a number over 0"),
    ],
)
def test_what_makes_no_sense_is_refused(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)
