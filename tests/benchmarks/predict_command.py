"""Predicting many images beside scoring them, as programs from start to end: images/s and memory, in turn."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.arguments import add_out, positive
from unetdist.cli.logs import logger
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError
from unetdist.storage.files import write_json

ROOT = Path(__file__).parents[2]
LOOK_S = 0.1
"""Between two looks at the memory of a program."""

EVALUATE, SHARDS, FILES = "evaluate.py", "predict.py, shards", "predict.py, files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand `predict` understands."""
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="weights: runs/NAME/best")
    add("--data", type=Path, required=True, metavar="DIR", help="shards, on a local disk")
    add("--images", type=Path, metavar="DIR", help="the same pictures as files (default: none are predicted)")
    add("--batch-size", type=positive, default=1, metavar="N", help="of both programs (%(default)s)")
    add("--rounds", type=positive, default=3, metavar="N", help="of each program, in turn (%(default)s)")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """The subcommand `predict`: measure and print; all numbers go to OUT/predict.json."""
    num_images = Manifest.load(args.data).num_samples
    rounds: dict[str, list[dict[str, float]]] = {}
    for number in range(args.rounds):
        for name, words in programs(args).items():
            with TemporaryDirectory() as out:
                found = watched([*words, *(["--out", out] if name != EVALUATE else [])])
            found["images_per_s"] = num_images / found["seconds"]
            rounds.setdefault(name, []).append(found)
            logger.info(
                "round %d of %d: %s: %.1f images/s", number + 1, args.rounds, name, found["images_per_s"]
            )
    result = {
        "num_images": num_images,
        "batch_size": args.batch_size,
        "rounds": rounds,
        "in_short": short(rounds),
    }
    write_json(args.out / "predict.json", {**facts, **result})
    Console().print(table(short(rounds), num_images))
    logger.info("all numbers are in %s", args.out / "predict.json")


def programs(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command lines to compare, without the folder for results."""
    batch = ["--batch-size", str(args.batch_size)]
    model = ["--model", str(args.model)]
    predict = ["launch/predict.py", *model, *batch, "--input"]
    found = {
        EVALUATE: ["launch/evaluate.py", *model, *batch, "--data", str(args.data)],
        SHARDS: [*predict, str(args.data)],
    }
    return found if args.images is None else {**found, FILES: [*predict, str(args.images)]}


def watched(words: Sequence[str]) -> dict[str, float]:
    """Run a script to its end: its seconds, and the memory (MiB) that it had early, late, and at most.

    Raises:
        ConfigError: it failed; its last words.
    """
    began, memory = time.monotonic(), []
    with TemporaryFile("w+") as said:
        with subprocess.Popen(
            [sys.executable, str(ROOT / words[0]), *words[1:]], stdout=said, stderr=said
        ) as process:
            seen = psutil.Process(process.pid)
            while process.poll() is None:
                memory.append(seen.memory_info().rss / 2**20)
                time.sleep(LOOK_S)
        seconds = time.monotonic() - began
        said.seek(0)
        last_words = said.read().strip().splitlines()[-1:]
    if process.returncode:
        raise ConfigError(f"{words[0]} failed: {''.join(last_words)} Try it by itself.")
    middle = memory[len(memory) // 3 :] or [0.0]  # once all is loaded
    fifth = max(1, len(middle) // 5)
    return {
        "seconds": seconds,
        "early_mib": statistics.median(middle[:fifth]),
        "late_mib": statistics.median(middle[-fifth:]),
        "most_mib": max(memory, default=0.0),
    }


def short(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over rounds, by program; `of_evaluate`: of the ratio to the scoring in the same round."""
    beside = [each["images_per_s"] for each in rounds[EVALUATE]]
    return {
        name: {
            **{key: statistics.median(each[key] for each in found) for key in found[0]},
            "of_evaluate": statistics.median(
                each["images_per_s"] / other for each, other in zip(found, beside, strict=True)
            ),
        }
        for name, found in rounds.items()
    }


def table(found: Mapping[str, Mapping[str, float]], num_images: int) -> Table:
    """One line per program."""
    drawn = Table(title=f"{num_images} images, from start to end; ratio: to {EVALUATE}")
    drawn.add_column("program", no_wrap=True)
    for title in ("images/s", "ratio", "MiB early", "MiB late", "MiB at most"):
        drawn.add_column(title, justify="right")
    for name, each in found.items():
        memory = [f"{each[key]:.0f}" for key in ("early_mib", "late_mib", "most_mib")]
        drawn.add_row(name, f"{each['images_per_s']:.1f}", f"{each['of_evaluate']:.2f}", *memory)
    return drawn
