"""Values on the command line of the benchmarks that are more than a word."""

import argparse
import re
from pathlib import Path

from tests.benchmarks.source import Case


def add_out(parser: argparse.ArgumentParser) -> None:
    """--out, which all subcommands have."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="(%(default)s)"
    )


def parse_case(text: str) -> Case:
    """WxH:CROP, as in 480x360:256."""
    match = re.fullmatch(r"(\d+)x(\d+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid WxH:CROP value: {text!r}; use 480x360:256")
    return Case(*map(int, match.groups()))


def parse_workers(text: str) -> tuple[int, ...]:
    """N,N,..., each over 0, or `none`."""
    if text == "none":
        return ()
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"invalid list of workers: {text!r}; use 1,2")
    return tuple(map(int, text.split(",")))


def positive(text: str) -> int:
    """A whole number over 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid count: {text!r}; use a whole number over 0")
    return int(text)


def positive_seconds(text: str) -> float:
    """Seconds over 0."""
    if not re.fullmatch(r"\d*\.?\d+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"invalid seconds: {text!r}; use a number over 0")
    return float(text)
