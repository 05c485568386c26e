"""Images/s of the whole data path: JPEG and mask files to uint8 batches with a random crop and flip.

Every contender reads the same pictures in the format that its documentation recommends, and first has to load a test
card correctly. With 0 workers each runs on one core with one thread. A rank from one core and one kind of file is known
to mislead: decoding of small or re-encoded JPEGs, large camera files, and worker processes each favour other programs.
Measure what you will run: --workers 0 1 2 4, and --images with files as your camera wrote them.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests.benchmarks.data_contenders import Job
from tests.benchmarks.harness import (
    ONE_THREAD,
    OURS,
    Contender,
    Results,
    add_measuring,
    add_peers_python,
    choose,
    print_table,
    run_child,
    write_results,
)
from tests.benchmarks.pictures import Size, add_pictures, palette_of, parse_case, write_pictures, write_test_card
from unetdist.errors import ConfigError

CONTENDERS = (
    Contender(OURS, "ours"),
    Contender("foreign", "ours, tars of others"),
    Contender("webdataset", 'webdataset .decode("pil")', ("webdataset",)),
    Contender("streaming", "MosaicML Streaming + PIL", ("mosaicml-streaming", "transformers")),
    Contender("litdata", "LitData + PIL", ("litdata",)),
    Contender("datasets", "HF datasets, map-style", ("datasets",)),
    Contender("datasets-streaming", "HF datasets, streaming", ("datasets",)),
    Contender("files-pil", "files + PIL", ("pillow",)),
    Contender("files-opencv", "files + OpenCV", ("opencv-python-headless",)),
    Contender("dali", "NVIDIA DALI on the CPU", ("nvidia-dali-cuda120",)),
    Contender("dali-unfiltered", "NVIDIA DALI on the CPU, our masks", ("nvidia-dali-cuda120",)),
)
CASES = ("480x360:256", "2048x1024:512")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `data`."""
    add_peers_python(parser)
    add_pictures(parser)
    add = parser.add_argument
    cases = f"size of the pictures and side of the crop, or original:CROP ({' '.join(CASES)}; --images: original:512)"
    add("--cases", type=parse_case, nargs="+", metavar="WxH:CROP", help=cases)
    add("--workers", type=int, nargs="+", default=[0], metavar="N", help="worker processes, as in 0 1 2 4 (0)")
    add("--batch-size", type=int, default=16, metavar="N", help="(%(default)s)")
    add("--seconds", type=float, default=1.0, metavar="S", help="length of a contender's round (%(default)s)")
    add("--core", type=int, help="the core used with 0 workers (the last one)")
    add_measuring(parser, rounds=12, samples=500)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure every case with every number of workers."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if args.core is None else args.core
    if core not in cores:
        raise ConfigError(f"--core ({core}) is not among the cores of this process, {cores}; use {cores[-1]}.")
    against = [CONTENDERS[0], *choose(args.against, CONTENDERS[1:])]
    cases: list[Results] = []
    more = {"core": core, "batch_size": args.batch_size, "images": str(args.images)}
    for size, crop in args.cases or map(parse_case, ["original:512"] if args.images else CASES):
        for workers in args.workers:
            results = measure(args, size, crop, workers, against, [core] if workers == 0 else [])
            cases.append(results)
            write_results(args.out, "data", facts, cases, **more)
            print_table(results, {})


def measure(
    args: argparse.Namespace, size: Size, crop: int, workers: int, against: list[Contender], cores: list[int]
) -> Results:
    """Write the pictures, check every contender, run the rounds."""
    folder = args.work.absolute() / "data" / str(size)
    write_pictures(folder / "pictures", args, size, args.samples)
    board = folder / f"card{crop}"
    write_test_card(board / "pictures", size if size.width else Size(2 * crop, 2 * crop))
    job, card = (
        asdict(Job(str(place / "pictures"), str(place / "formats"), crop, args.batch_size, workers))
        for place in (folder, board)
    )
    results = Results(f"{size} crop {crop} workers {workers}", against)

    def child(contender: Contender, what: str, **arguments: Any) -> dict[str, Any]:
        return run_child(
            f"tests.benchmarks.data_contenders:{what}",
            {"name": contender.name, "job": job, **arguments},
            python=args.peers_python if contender.packages else sys.executable,
            log=folder / "logs" / f"{contender.name}.log",
            cores=cores,
            variables=ONE_THREAD,
        )

    classes = palette_of(args).num_classes
    results.check(
        lambda contender: child(
            contender, "check", card=card, num_classes=classes, packages=["torch", "pillow", *contender.packages]
        )
    )
    results.measure(lambda contender: child(contender, "measure", seconds=args.seconds), args.rounds)
    return results
