"""The benchmark of the data path: one case (pictures of one size, one crop), everybody, round by round."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import ruler
from tests.benchmarks.contenders import OURS, PEERS, Contender, Process, VoidError
from tests.benchmarks.peers.protocol import LEAD_BATCHES, Job
from tests.benchmarks.rounds import Measured, run_rounds
from tests.benchmarks.source import Case, Pictures, write_pictures
from unetdist.cli.logs import logger
from unetdist.data.loader import DataConfig
from unetdist.errors import ConfigError

CHECKED_BATCHES = 4
SPLIT_BATCHES = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and how."""

    work: Path
    """Folder for pictures and formats, kept for the next run."""
    peers_python: str
    core: int
    against: tuple[Contender, ...] = PEERS
    batch_size: int = 16
    num_samples: int | None = None
    """In an epoch; None: `epoch_length`."""
    num_rounds: int = 12
    seconds: float = 1.0
    """Least length of a round of one contender."""
    split: bool = False
    workers: tuple[int, ...] = ()
    handover: int = 0
    """Batches whose hand-over is timed."""


@dataclass
class Result:
    """What one case gave."""

    case: Case
    num_samples: int
    measured: Measured
    versions: dict[str, dict[str, str]]
    """Packages by contender."""
    split: dict[str, float] | None = None
    workers: Measured | None = None
    """Rounds of `1 core` (no workers) and of `N workers`."""
    handover: dict[str, list[float]] | None = None
    titles: dict[str, str] = field(default_factory=dict)


def choose(names: str, everybody: tuple[Contender, ...] = PEERS) -> tuple[Contender, ...]:
    """The contenders of `--against`: `all`, or names with commas between."""
    known = {contender.name: contender for contender in everybody}
    if names == "all":
        return everybody
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ConfigError(
            f"--against ({names}) names nobody who is known; use all, or some of {', '.join(known)}."
        )
    return tuple(known[name] for name in chosen)


def epoch_length(case: Case) -> int:
    """Samples that take some seconds to load, so that the start of an epoch does not count."""
    return 2000 if case.width * case.height < 1_000_000 else 500


def run_case(case: Case, pictures: Pictures, plan: Plan) -> Result:
    """Write, check, measure."""
    folder = plan.work / f"{case.width}x{case.height}"
    num_classes = pictures.palette.num_classes
    num_samples = plan.num_samples or epoch_length(case)
    write_pictures(folder / "pictures", pictures, case, num_samples=num_samples)
    board = folder / f"ruler{case.crop}"
    ruler.write_ruler(board / "pictures", (case.height, case.width))
    job = Job(str(folder / "pictures"), str(folder / "formats"), case.crop, plan.batch_size)
    check = Job(str(board / "pictures"), str(board / "formats"), case.crop, plan.batch_size)
    everybody = (OURS, *plan.against)
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        void: dict[str, str] = {}
        versions: dict[str, dict[str, str]] = {}
        for contender in everybody:
            process = _start(stack, contender, plan, folder, core=plan.core)
            try:
                versions[contender.name] = prepare(process, job, check, num_classes)
                processes[contender.name] = process
            except VoidError as error:
                void[contender.name] = str(error)
                logger.warning("%s: %s", contender.name, error)
                process.close()
        measured = run_rounds(
            processes, num_rounds=plan.num_rounds, seconds=plan.seconds, label=f"measuring {case}"
        )
        result = Result(
            case,
            num_samples,
            Measured(measured.rounds, {**void, **measured.void}),
            versions,
            titles={contender.name: contender.title for contender in everybody},
        )
        if plan.split and OURS.name in processes:
            result.split = processes[OURS.name].ask("split", num_batches=SPLIT_BATCHES)
    if plan.workers:
        result.workers = measure_workers(job, plan, folder)
    if plan.handover:
        with ExitStack() as stack:
            process = _start(stack, OURS, plan, folder, core=None)
            process.open(job)
            result.handover = process.ask("handover", count=plan.handover)
    return result


def prepare(process: Any, job: Job, check: Job, num_classes: int) -> dict[str, str]:
    """Let a contender write its formats, look at what it loads, and leave it ready; its packages' versions.

    `VoidError` where it cannot be imported, fails, or loads something else than it should.
    """
    saved = Path(process.log).with_suffix(".npz")
    for what, is_ruler in ((check, True), (job, False)):
        process.open(what)
        process.ask("save", path=str(saved), count=CHECKED_BATCHES)
        with np.load(saved) as arrays:
            images, masks = arrays["images"], arrays["masks"]
        saved.unlink()
        problem = ruler.shape_problem(
            images,
            masks,
            batch_size=what.batch_size,
            crop=what.crop,
            num_classes=num_classes if not is_ruler else 2,
        )
        if problem is None and is_ruler:
            problem = ruler.pairing_problem(images, masks)
        if problem is not None:
            raise VoidError(problem)
    versions: dict[str, str] = process.ask("versions")
    return versions


def measure_workers(job: Job, plan: Plan, folder: Path) -> Measured:
    """Rounds of our path on one core, and with workers on all cores."""
    ahead = DataConfig(train="").prefetch
    with ExitStack() as stack:
        processes = {"1 core": _start(stack, OURS, plan, folder, core=plan.core)}
        processes["1 core"].open(job)
        for count in plan.workers:
            name = f"{count} workers"
            processes[name] = _start(stack, OURS, plan, folder, core=None, log=f"workers{count}")
            lead = LEAD_BATCHES + (ahead + 1) * count
            processes[name].open(
                Job(job.pictures, job.work, job.crop, job.batch_size, num_workers=count, lead_batches=lead)
            )
        return run_rounds(
            processes, num_rounds=plan.num_rounds, seconds=plan.seconds, label="measuring workers"
        )


def _start(
    stack: ExitStack,
    contender: Contender,
    plan: Plan,
    folder: Path,
    *,
    core: int | None,
    log: str | None = None,
) -> Process:
    try:
        process = Process(
            contender,
            python=plan.peers_python,
            core=core,
            log=folder / "logs" / f"{log or contender.name}.log",
        )
    except OSError as error:
        raise ConfigError(
            f"--peers-python ({plan.peers_python}) does not run ({error.strerror}); give the python of the "
            "environment that holds the others' packages."
        ) from None
    closed: Callable[[], None] = process.close
    stack.callback(closed)
    return process
