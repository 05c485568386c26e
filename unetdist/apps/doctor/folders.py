"""The folders of a run: written to, seen by every rank, fast and large enough; nothing is left in them."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, duration, ok, problem, size, warning
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.errors import UnetdistError
from unetdist.storage.checkpoint_files import has_checkpoint
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.config import Config
from unetdist.train.run_folder import check_run_folder
from unetdist.train.run_status import read_status

GROUP = "folders"
PROBE = ".doctor-"
"""How the names of our files begin, which are removed at once."""
SPEED_BYTES = 64_000_000
"""Written to see how fast that is; less where there is little room."""
ROOM_SHARE = 0.8
"""Of the free disk that a run may take before a warning."""


def standing(path: Path) -> Path:
    """The folder itself, or, if it is yet to be made, the one in which that will be done."""
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def remove(folder: Folder, name: str) -> None:
    """Remove a file of ours; where it could not be made there is none."""
    with suppress(OSError, UnetdistError):
        folder.remove(name)


def reason_of(error: Exception) -> str:
    """Why something could not be written, without the name of a file that nobody knows."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def former_run(case: Case) -> dict[str, Any]:
    """On rank 0: whether a run lies there already, and may be continued with these settings."""
    if not case.world.is_main:
        return {}
    values = public(settings.to_mapping(case.settings))
    try:
        check_run_folder(
            case.run_dir, values, cfg=case.settings.checkpoint, defaults=settings.defaults(Config)
        )
        refused = ""
    except UnetdistError as error:
        refused = str(error)
    status = read_status(case.run_dir)
    return {
        "refused": refused,
        "has_run": has_checkpoint(case.settings.checkpoint.folder_of(case.run_dir)),
        "status": status and f"{status.state} at step {status.step:,}",
        "is_running": status is not None and status.state == "running",
    }


def judge_former_run(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Begin, go on, or refuse."""
    found = ranks[0]
    if found["refused"]:
        yield problem("run folder", found["refused"])
    elif found["has_run"]:
        fact = f"{case.run_dir} holds a run ({found['status'] or 'of unknown state'}), which the same command continues"
        if found["is_running"]:
            yield warning("run folder", fact, "see that it does not run still: two at once would spoil it")
        else:
            yield ok("run folder", fact)
    else:
        yield ok("run folder", f"{case.run_dir}: a new run")


def target(case: Case) -> Folder:
    """Where the checkpoints will be, or the folder in which theirs will be made."""
    folder = case.settings.checkpoint.folder_of(case.run_dir)
    return open_folder(standing(folder.path("").absolute())) if folder.is_local else folder


def shared(case: Case) -> dict[str, Any]:
    """A file that rank 0 writes is read by all; removed once all have looked."""
    token = secrets.token_hex(8)
    name, where, problem_ = f"{PROBE}{token}", "", ""
    if case.world.is_main:
        try:
            folder = target(case)
            where = str(folder)
            case.undo.callback(remove, folder, name)
            folder.write(name, token.encode())
        except (OSError, UnetdistError) as error:
            problem_ = reason_of(error)
    name, token, where, problem_ = case.board.tell([name, token, where, problem_])
    if problem_:
        return {"where": where, "problem": problem_, "is_seen": False}
    try:
        is_seen = open_folder(where).read(name) == token.encode()
    except (OSError, UnetdistError):
        is_seen = False
    return {"where": where, "problem": "", "is_seen": is_seen}


def judge_shared(_: Case, ranks: list[dict[str, Any]]) -> Iterator[Finding]:
    """Writable, and one folder for all."""
    where = ranks[0]["where"]
    if ranks[0]["problem"]:
        remedy = "give --checkpoint.folder, or --runs_dir, a folder that you may write to, with room in it"
        yield problem("checkpoints", f"{where} cannot be written to ({ranks[0]['problem']})", remedy)
        return
    blind = [number for number, rank in enumerate(ranks) if not rank["is_seen"]]
    if blind:
        fact = f"what rank 0 writes to {where} is not seen by rank {', '.join(map(str, blind))}"
        remedy = "give --checkpoint.folder, or --runs_dir, a place that all machines share"
        yield problem("checkpoints", fact, remedy)
    else:
        seen = f", and all {len(ranks)} ranks read it" if len(ranks) > 1 else ""
        yield ok("checkpoints", f"{where} can be written to{seen}")


def results(case: Case) -> str | None:
    """On rank 0: why the folder of the run cannot be written to; empty where it can."""
    if not case.world.is_main:
        return None
    folder = open_folder(standing(case.run_dir.absolute()))
    name = f"{PROBE}{secrets.token_hex(8)}"
    case.undo.callback(remove, folder, name)
    try:
        folder.write(name, b"probe")
    except OSError as error:
        return f"{folder} cannot be written to ({reason_of(error)})"
    return ""


def judge_results(case: Case, ranks: list[str | None]) -> Iterator[Finding]:
    """Writable."""
    if ranks[0]:
        yield problem("results", ranks[0], "give --runs_dir a folder that you may write to")
    else:
        yield ok("results", f"{case.run_dir} can be written to")


def write_speed(case: Case) -> list[float] | None:
    """On rank 0: (bytes, seconds) of a file that is put on the disk and removed."""
    if not case.world.is_main:
        return None
    folder, num_bytes = target(case), case.measured.checkpoint_bytes or SPEED_BYTES
    num_bytes = min(num_bytes, SPEED_BYTES)
    if folder.is_local:
        num_bytes = min(num_bytes, shutil.disk_usage(folder.path("")).free // 10)
    name, data = f"{PROBE}{secrets.token_hex(8)}", os.urandom(max(1, num_bytes))
    case.undo.callback(remove, folder, name)
    began = time.perf_counter()
    folder.write(name, data)
    return [len(data), time.perf_counter() - began]


def judge_write_speed(case: Case, ranks: list[list[float] | None]) -> Iterator[Finding]:
    """Fast enough for checkpoints, which are written beside the training."""
    assert ranks[0] is not None
    num_bytes, seconds = ranks[0]
    measured = case.measured
    measured.write_bytes_s = num_bytes / seconds
    fact = f"{size(num_bytes / seconds)}/s"
    if measured.checkpoint_bytes:
        fact += f"; a checkpoint of {size(measured.checkpoint_bytes)} takes "
        fact += duration(measured.checkpoint_bytes / measured.write_bytes_s)
    yield ok("writing", fact)


def room(case: Case) -> dict[str, Any] | None:
    """On rank 0: free bytes where checkpoints and results go, by folder; those on one disk together."""
    if not case.world.is_main:
        return None
    measured, cfg = case.measured, case.settings.checkpoint
    assert measured.checkpoint_bytes is not None
    assert measured.weights_bytes is not None
    # The one being written is there beside those that are kept.
    needs = [(target(case), (cfg.keep_last + 1) * measured.checkpoint_bytes)]
    needs.append((open_folder(standing(case.run_dir.absolute())), 2 * measured.weights_bytes))
    disks: dict[int, list[Any]] = {}
    for folder, num_bytes in needs:
        if folder.is_local:
            path = folder.path("")
            disk = disks.setdefault(path.stat().st_dev, [str(folder), shutil.disk_usage(path).free, 0])
            disk[2] += num_bytes
    return {"disks": list(disks.values()), "needed": sum(num_bytes for _, num_bytes in needs)}


def judge_room(case: Case, ranks: list[dict[str, Any] | None]) -> Iterator[Finding]:
    """Room for all that the run keeps at a time."""
    assert ranks[0] is not None
    case.measured.disk_bytes = ranks[0]["needed"]
    remedy = "make room, give --checkpoint.folder another disk, or lower --checkpoint.keep_last"
    for where, free, needed in ranks[0]["disks"]:
        fact = f"{size(needed)} for checkpoints and weights, {size(free)} free in {where}"
        if needed > free:
            yield problem("disk", fact, remedy)
        elif needed > ROOM_SHARE * free:
            yield warning("disk", fact, remedy)
        else:
            yield ok("disk", fact)


def _if_settings(case: Case) -> str | None:
    return GO if case.config is not None else ""


def _if_writable(case: Case) -> str | None:
    return GO if case.config is not None and not case.levels[GROUP, "problem"] else ""


def _if_sizes_known(case: Case) -> str | None:
    return GO if case.measured.checkpoint_bytes is not None and _if_writable(case) is GO else ""


CHECKS = (
    Check(group=GROUP, what="run folder", measure=former_run, judge=judge_former_run, why_not=_if_settings),
    Check(group=GROUP, what="results", measure=results, judge=judge_results, why_not=_if_settings),
    Check(group=GROUP, what="checkpoints", measure=shared, judge=judge_shared, why_not=_if_settings),
    Check(group=GROUP, what="writing", measure=write_speed, judge=judge_write_speed, why_not=_if_writable),
    Check(group=GROUP, what="disk", measure=room, judge=judge_room, why_not=_if_sizes_known),
)
