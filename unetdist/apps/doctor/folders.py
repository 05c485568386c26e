"""The folders of a run: free for this run, writable, and seen by every rank. Nothing is left in them."""

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from unetdist.apps.doctor.examination import Examination
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.errors import UnetdistError
from unetdist.storage.checkpoint_files import has_checkpoint
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.config import Config
from unetdist.train.run_folder import check_run_folder
from unetdist.train.run_status import read_status


def check_folders(exam: Examination) -> None:
    """Collective. The run's own folder, then that of its checkpoints."""
    if answers := exam.ask("run folder", lambda: former_run(exam) if exam.world.is_main else None):
        _judge_former_run(exam, answers[0])
    if answers := exam.ask("results", lambda: _try_to_write(exam)):
        if answers[0]:
            exam.problem("results", answers[0], "give --runs_dir a folder that you may write to")
        else:
            exam.ok("results", f"{exam.run_dir} can be written to")
    _check_checkpoints(exam)


def existing(path: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def checkpoint_folder(exam: Examination) -> Folder:
    """Where checkpoints will be written, or the existing folder in which theirs will be made."""
    folder = exam.settings.checkpoint.folder_of(exam.run_dir)
    return open_folder(existing(folder.path("").absolute())) if folder.is_local else folder


def former_run(exam: Examination) -> dict[str, Any]:
    """Whether the folder holds a run already, and whether these settings may continue it."""
    cfg, values = exam.settings.checkpoint, public(settings.to_mapping(exam.settings))
    refusal = ""
    try:
        check_run_folder(exam.run_dir, values, cfg=cfg, defaults=settings.defaults(Config))
    except UnetdistError as error:
        refusal = str(error)
    status = read_status(exam.run_dir)
    return {
        "refusal": refusal,
        "has_run": has_checkpoint(cfg.folder_of(exam.run_dir)),
        "status": f"{status.state} at step {status.step:,}" if status else "of unknown state",
        "is_running": status is not None and status.state == "running",
    }


def _judge_former_run(exam: Examination, found: dict[str, Any]) -> None:
    fact = f"{exam.run_dir} holds a run ({found['status']}), which the same command continues"
    if found["refusal"]:
        exam.problem("run folder", found["refusal"])
    elif not found["has_run"]:
        exam.ok("run folder", f"{exam.run_dir}: a new run")
    elif found["is_running"]:
        exam.warn("run folder", fact, "make sure that it is not still running: two at once would spoil it")
    else:
        exam.ok("run folder", fact)


def _try_to_write(exam: Examination) -> str:
    """On rank 0: why the folder of the run cannot be written to; empty if it can."""
    if not exam.world.is_main:
        return ""
    folder, name = open_folder(existing(exam.run_dir.absolute())), _probe_name()
    try:
        folder.write(name, b"probe")
    except OSError as error:
        return f"{folder} cannot be written to ({_reason(error)})"
    finally:
        _remove(folder, name)
    return ""


def _check_checkpoints(exam: Examination) -> None:
    """Collective. Rank 0 writes a file, all ranks read it, and rank 0 removes it."""
    name, written = _probe_name(), {"name": "", "where": "", "error": ""}
    folder: list[Folder] = []

    def write() -> dict[str, str]:
        if exam.world.is_main:
            folder.append(checkpoint_folder(exam))
            written.update(name=name, where=str(folder[0]))
            try:
                folder[0].write(name, name.encode())
            except (OSError, UnetdistError) as error:
                written["error"] = _reason(error)
        return written

    try:
        if (answers := exam.ask("checkpoints", write)) is None:
            return
        name, where, error = (answers[0][key] for key in ("name", "where", "error"))
        if error:
            remedy = "give --checkpoint.folder, or --runs_dir, a folder that you may write to, with free space"
            exam.problem("checkpoints", f"{where} cannot be written to ({error})", remedy)
            return
        judge_shared(exam, where, exam.ask("checkpoints", lambda: _is_seen(where, name)) or [])
    finally:
        for each in folder:
            _remove(each, name)


def _is_seen(where: str, name: str) -> bool:
    with suppress(OSError, UnetdistError):
        return open_folder(where).read(name) == name.encode()
    return False


def judge_shared(exam: Examination, where: str, is_seen: list[bool]) -> None:
    """Note ranks that do not see what rank 0 wrote."""
    blind = [str(rank) for rank, sees in enumerate(is_seen) if not sees]
    if blind:
        remedy = "give --checkpoint.folder, or --runs_dir, a place that all machines share"
        exam.problem("checkpoints", f"rank {', '.join(blind)} does not see what rank 0 writes to {where}", remedy)
    else:
        together = f", and all {len(is_seen)} ranks read it" if len(is_seen) > 1 else ""
        exam.ok("checkpoints", f"{where} can be written to{together}")


def _probe_name() -> str:
    return f".doctor-{secrets.token_hex(8)}"


def _remove(folder: Folder, name: str) -> None:
    with suppress(OSError, UnetdistError):  # it may never have been made
        folder.remove(name)


def _reason(error: Exception) -> str:
    """Why a file cannot be written, without its name, which says nothing to the user."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
