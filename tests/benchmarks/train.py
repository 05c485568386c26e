"""The subcommand `train`: images/s of training loops, ours beside what people would write instead.

Each loop trains the same network on the same pictures in a process of its own, and they take turns. A row whose loss
after some steps is not that of the others is void.
"""

import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import Contender, Process, VoidError
from tests.benchmarks.loops.everybody import OURS, SELVES
from tests.benchmarks.loops.protocol import TrainJob
from tests.benchmarks.ours import own_shards
from tests.benchmarks.peers.protocol import Job
from tests.benchmarks.rounds import Measured, run_rounds
from tests.benchmarks.source import Case, Pictures, write_pictures
from unetdist.cli.logs import logger
from unetdist.data import shapes
from unetdist.data.labels import Label, Palette
from unetdist.errors import ConfigError
from unetdist.model.config import PRESETS, Preset

MARGIN_PX = 8
"""Pictures are wider and higher than the crop by so much, so that the crop is random."""

LOSS_FACTOR, LOSS_SLACK = 1.25, 0.05
"""A loss is off that is more than so many times the median of all, or less than that part of it, and by so much."""

NUM_CLASSES = 12
"""Of the built-in shapes, whose other classes do not occur: as many as CamVid's."""


@dataclass(frozen=True)
class TrainCase:
    """Network, size of the random crop, batch."""

    preset: Preset
    width: int
    height: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.preset}:{self.width}x{self.height}:{self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What to measure, and how."""

    work: Path
    """Folder for pictures, shards and logs, kept for the next run."""
    peers_python: str
    against: tuple[Contender, ...]
    precisions: tuple[str, ...]
    """Of the others; ours has the first."""
    num_workers: int
    num_samples: int
    num_rounds: int
    seconds: float
    """Least length of a round of one loop."""
    check_steps: int = 50
    split_steps: int = 10
    on_device: bool = False
    is_cold: bool = False
    """Nobody finds what it compiled before."""


@dataclass
class Row:
    """What is known of a loop beside its rounds."""

    name: str
    """With its precision."""
    title: str
    precision: str
    first_step_s: float = math.nan
    """From the start of its process to the end of its first step."""
    alone_images_per_s: float = math.nan
    """In a round of its own at its start: the number that a benchmark which is cut short still has."""
    loss: float = math.nan
    """Mean over the last fifth of the steps of the check."""
    split_ms: dict[str, float] = field(default_factory=dict)
    syncs: float | None = None
    """Times per step that the host waits for the GPU; None: there is none."""
    peak_gb: float = math.nan
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainResult:
    """What one case gave."""

    case: TrainCase
    num_classes: int
    rows: dict[str, Row]
    measured: Measured
    ours: str
    """Name of our row."""


def run_case(
    case: TrainCase,
    pictures: Pictures,
    plan: TrainPlan,
    tell: Callable[[TrainResult], object] = lambda _: None,
) -> TrainResult:
    """Write pictures and shards, start everybody, check the losses, measure in turns.

    `tell` is called with what is known so far, after each start and after each round.
    """
    folder = plan.work / f"{case.width}x{case.height}"
    job = prepare(case, pictures, plan, folder)
    contenders = list(rows_of(plan))
    rows = {name: Row(name, contender.title, precision) for name, contender, precision in contenders}
    void: dict[str, str] = {}
    result = TrainResult(case, job.num_classes, rows, Measured([], void), contenders[0][0])

    def add(measured: Measured) -> None:
        result.measured = Measured(measured.rounds, {**void, **measured.void})
        tell(result)

    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, contender, precision in contenders:
            work = folder / "runs" / name.replace(" ", "_")
            its_job = replace(job, precision=precision, work=str(work))
            try:
                processes[name] = start(stack, contender, its_job, rows[name], plan, work.with_suffix(".log"))
            except VoidError as error:
                void[name] = str(error)
                logger.warning("%s: %s", name, error)
            tell(result)
        for name, problem in loss_problems(rows, processes).items():
            void[name] = problem
            logger.warning("%s: %s", name, problem)
            processes.pop(name).close()
        measured = run_rounds(
            processes,
            num_rounds=plan.num_rounds,
            seconds=plan.seconds,
            label=f"measuring {case}",
            after_round=add,
        )
        add(measured)
        for name, process in processes.items():
            if name not in result.measured.void:
                try:
                    look_inside(process, rows[name], plan)
                except VoidError as error:
                    logger.warning("%s: not split: %s", name, error)
    return result


def rows_of(plan: TrainPlan) -> list[tuple[str, Contender, str]]:
    """Name, loop and precision of each row: ours in the first precision, the others in each."""
    return [
        (f"{contender.name} {precision}", contender, precision)
        for contender in (OURS, *plan.against)
        for precision in (plan.precisions[:1] if contender in (OURS, *SELVES) else plan.precisions)
    ]


def prepare(case: TrainCase, pictures: Pictures, plan: TrainPlan, folder: Path) -> TrainJob:
    """Write the pictures and our shards of them, unless a former run did; the job of everybody."""
    if pictures.source is None:
        pictures.palette = with_spare_classes(shapes.PALETTE, NUM_CLASSES)
    size = Case(case.width + MARGIN_PX, case.height + MARGIN_PX, min(case.width, case.height))
    write_pictures(folder / "pictures", pictures, size, num_samples=plan.num_samples)
    formats = Job(str(folder / "pictures"), str(folder / "formats"), size.crop, case.batch_size)
    return TrainJob(
        pictures=formats.pictures,
        shards=formats.format_once("shards", lambda place: own_shards(formats, place)),
        work=str(folder),
        height=case.height,
        width=case.width,
        batch_size=case.batch_size,
        num_classes=pictures.palette.num_classes,
        widths=list(PRESETS[case.preset]),
        precision=plan.precisions[0],
        num_workers=plan.num_workers,
        lr=1e-3,
        on_device=plan.on_device,
    )


def with_spare_classes(palette: Palette, num_classes: int) -> Palette:
    """The palette, filled up with classes that do not occur."""
    spare = range(palette.num_classes, num_classes)
    return Palette(
        (*palette.labels, *(Label(number, f"spare{number}", (number, 0, 0), number) for number in spare))
    )


def start(
    stack: ExitStack, contender: Contender, job: TrainJob, row: Row, plan: TrainPlan, log: Path
) -> Process:
    """A loop after its first step and its check; `VoidError` where it cannot."""
    try:
        process = Process(
            contender, python=plan.peers_python, core=None, log=log, variables=variables_of(plan, log)
        )
    except OSError as error:
        raise ConfigError(
            f"--peers-python ({plan.peers_python}) does not run ({error.strerror}); give the python of the "
            "environment that holds the others' packages."
        ) from None
    closed: Callable[[], None] = process.close
    stack.callback(closed)
    try:
        row.first_step_s = process.open(job)["first_step_s"]
        row.loss = process.ask("check", steps=plan.check_steps)["loss"]
        alone = process.ask("time", seconds=plan.seconds)
        row.alone_images_per_s = alone["samples"] / alone["seconds"]
    except VoidError:
        process.close()
        raise
    logger.info(
        "%s: first step after %.1f s, loss %.3f, alone %.4g images/s",
        row.name,
        row.first_step_s,
        row.loss,
        row.alone_images_per_s,
    )
    return process


def variables_of(plan: TrainPlan, log: Path) -> dict[str, str]:
    """Of a loop's environment: empty folders for what it compiles, where the first step is to be a cold one."""
    if not plan.is_cold:
        return {}
    folder = log.with_suffix(".compiled")
    shutil.rmtree(folder, ignore_errors=True)
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def loss_problems(rows: Mapping[str, Row], names: Sequence[str] | Mapping[str, Process]) -> dict[str, str]:
    """Why the loss of each of `names` that is off is off."""
    finite = [rows[name].loss for name in names if math.isfinite(rows[name].loss)]
    usual = statistics.median(finite) if finite else math.nan
    low, high = usual / LOSS_FACTOR - LOSS_SLACK, usual * LOSS_FACTOR + LOSS_SLACK
    return {
        name: f"its loss after the steps of the check is {rows[name].loss:.3f}, that of all in the middle {usual:.3f}"
        for name in names
        if not low <= rows[name].loss <= high
    }


def look_inside(process: Any, row: Row, plan: TrainPlan) -> None:
    """Where the time of a step goes, how often the host waits, memory."""
    facts = process.ask("facts")
    row.peak_gb, row.versions = facts["peak_gb"], facts["versions"]
    row.syncs = process.ask("syncs", steps=plan.split_steps)["syncs"]
    row.split_ms = process.ask("split", steps=plan.split_steps)
