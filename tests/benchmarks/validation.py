"""The subcommand `eval`: validation images/s of ours, which counts exactly, beside plain loops over the same pictures.

A whole pass over the validation set at a time, in turns, each in a process of its own. A loop whose counts of pixels
are not ours is void.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.arguments import add_out, positive, positive_seconds
from tests.benchmarks.chart import Bar, draw_bars, draw_sheet
from tests.benchmarks.contenders import Contender, Process, VoidError
from tests.benchmarks.ours import own_shards
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.rounds import Measured, run_rounds, spread
from tests.benchmarks.source import Case, Pictures, write_pictures
from tests.benchmarks.train import NUM_CLASSES, TrainCase, with_spare_classes
from tests.benchmarks.train_command import PRECISIONS, default_workers, parse_train_case
from unetdist.cli.logs import logger
from unetdist.data import shapes
from unetdist.storage.files import write_atomic, write_json

CASES = ("student:480x360:8",)
CASES_ON_CPU = ("student:128x96:4",)

OURS = "ours"
TITLES = {
    OURS: "ours",
    "plain": "plain loop",
    "plain-best": "plain loop, best flags",
}

DISAGREEMENT = 0.02
"""Largest share of pixels that a loop may count otherwise: where two classes are as likely, rounding decides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommand understands."""
    has_gpu = torch.cuda.is_available()
    case = (CASES if has_gpu else CASES_ON_CPU)[0]
    add = parser.add_argument
    add(
        "--case",
        type=parse_train_case,
        default=parse_train_case(case),
        metavar="PRESET:WxH:BATCH",
        help=f"network, size of the pictures, images per forward pass ({case})",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="bf16" if has_gpu else "fp32",
        help="of the forward pass (%(default)s)",
    )
    add("--workers", type=int, default=default_workers(), metavar="N", help="of each loop (%(default)s)")
    add(
        "--samples",
        type=positive,
        default=500 if has_gpu else 40,
        metavar="N",
        help="pictures (%(default)s)",
    )
    add("--rounds", type=positive, default=6, metavar="N", help="that count (%(default)s)")
    add("--seconds", type=positive_seconds, default=0.5, help="of a loop's round, or a pass (%(default)s)")
    add("--work", type=Path, default=Path("runs/benchmark/work"), metavar="DIR", help="(%(default)s)")
    add_out(parser)


def run(args: argparse.Namespace, facts: Mapping[str, Any]) -> None:
    """Measure and print; all numbers go to OUT/eval.json, and a chart to OUT/eval.png."""
    case: TrainCase = args.case
    measured = measure(
        case,
        args.work.absolute() / "eval" / f"{case.width}x{case.height}",
        precision=args.precision,
        num_workers=args.workers,
        num_samples=args.samples,
        num_rounds=args.rounds,
        seconds=args.seconds,
    )
    record = {**facts, "case": str(case), "precision": args.precision, "rows": rows_of(measured)}
    write_json(args.out / "eval.json", {**record, "raw": {"rounds": measured.rounds}})
    size = f"{case.width}x{case.height}, batch {case.batch_size}, {args.precision}"
    title = f"{case.preset} U-Net, {size}: validation images/s"
    caption = f"{facts['cpu']}, {facts['cores']} cores, {facts['date'][:10]}, commit {facts['commit']}"
    with write_atomic(args.out / "eval.png") as file:
        Image.fromarray(draw_sheet([draw_bars(title, bars_of(measured))], caption)).save(file, "PNG")
    Console().print(table(title, measured))
    for name, why in measured.void.items():
        Console().print(f"  void: {escape(TITLES[name])}: {escape(why)}")
    logger.info("all numbers are in %s, a chart in %s", args.out / "eval.json", args.out / "eval.png")


def measure(
    case: TrainCase,
    folder: Path,
    *,
    precision: str,
    num_workers: int,
    num_samples: int,
    num_rounds: int,
    seconds: float,
) -> Measured:
    """Write pictures and shards, start everybody, compare what they count, measure in turns."""
    pictures = Pictures(None, None, None)
    pictures.palette = with_spare_classes(shapes.PALETTE, NUM_CLASSES)
    size = Case(case.width, case.height, min(case.width, case.height))
    write_pictures(folder / "pictures", pictures, size, num_samples=num_samples)
    job = Job(
        str(folder / "pictures"), str(folder / "formats"), size.crop, batch_size=num_samples, lead_batches=1
    )
    shards = job.format_once("shards", lambda place: own_shards(job, place))
    words = (precision, str(num_workers), str(case.batch_size), case.preset)
    loops = "tests.benchmarks.loops"
    contenders = (
        Contender(OURS, TITLES[OURS], f"{loops}.eval_ours", arguments=words),
        *(
            Contender(
                name,
                TITLES[name],
                f"{loops}.eval_plain",
                arguments=(*words, str(NUM_CLASSES), name.removeprefix("plain-")),
            )
            for name in ("plain", "plain-best")
        ),
    )
    void: dict[str, str] = {}
    counted: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for contender in contenders:
            log = folder / "logs" / f"{contender.name}.log"
            process = Process(contender, python=sys.executable, core=None, log=log, variables={})
            closed: Callable[[], None] = process.close
            stack.callback(closed)
            try:
                process.open(Job(shards, job.work, job.crop, num_samples) if contender.name == OURS else job)
                counted[contender.name] = counts_of(process, log.with_suffix(".npz"))
            except VoidError as error:
                void[contender.name] = str(error)
                logger.warning("%s: %s", contender.name, error)
                process.close()
                continue
            processes[contender.name] = process
        for name, problem in count_problems(counted).items():
            void[name] = problem
            processes.pop(name).close()
        measured = run_rounds(
            processes, num_rounds=num_rounds, seconds=seconds, label=f"measuring {case} validation"
        )
    return Measured(measured.rounds, {**void, **measured.void})


def counts_of(process: Process, file: Path) -> np.ndarray:
    """Pixels by target and prediction of one pass."""
    process.ask("save", path=str(file), count=1)
    with np.load(file) as arrays:
        counts: np.ndarray = arrays["images"][0]
    file.unlink()
    return counts


def count_problems(counted: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Why the counts of each loop that does not agree with ours are wrong."""
    if OURS not in counted:
        return {}
    ours = counted[OURS]
    problems = {}
    for name, counts in counted.items():
        if counts.sum() != ours.sum():
            problems[name] = f"it counts {counts.sum()} pixels, ours {ours.sum()}"
        elif (share := abs(counts - ours).sum() / 2 / ours.sum()) > DISAGREEMENT:
            problems[name] = f"it sees other classes than ours in {100 * share:.1f} % of the pixels"
    return problems


def rows_of(measured: Measured) -> list[dict[str, Any]]:
    """As plain JSON types."""
    rows: list[dict[str, Any]] = []
    for name, title in TITLES.items():
        row: dict[str, Any] = {"name": name, "title": title, "void": measured.void.get(name)}
        if row["void"] is None:
            row["images_per_s"] = asdict(spread(measured.rates(name)))
            if OURS not in measured.void:
                row["ours_is_faster_by"] = asdict(measured.ratio(OURS, name))
        rows.append(row)
    return rows


def table(title: str, measured: Measured) -> Table:
    """What a person reads."""
    result = Table("", title=title, title_justify="left")
    for heading in ("images/s", "quartiles", "ours / theirs"):
        result.add_column(heading, justify="right")
    for row in rows_of(measured):
        if row["void"] is not None:
            result.add_row(row["title"], "void", style="dim")
            continue
        rate, ratio = row["images_per_s"], row.get("ours_is_faster_by")
        result.add_row(
            row["title"],
            f"{rate['median']:.4g}",
            f"{rate['low']:.4g} .. {rate['high']:.4g}",
            "" if ratio is None or row["name"] == OURS else f"{ratio['median']:.2f}",
        )
    return result


def bars_of(measured: Measured) -> Sequence[Bar]:
    """Images per second of everybody."""
    bars = []
    for name, title in TITLES.items():
        rates = None if name in measured.void else spread(measured.rates(name))
        bars.append(Bar(title, rates, f"{rates.median:.4g}" if rates else "void", is_ours=name == OURS))
    return bars
