"""The folders of a run: free for this run, writable, and seen by every rank. Nothing is left in them."""

import secrets
from contextlib import suppress
from pathlib import Path

from unetdist.apps.doctor.examination import Examination, Level
from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.errors import ConfigError, UnetdistError
from unetdist.storage.checkpoint_files import has_checkpoint
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.config import Config
from unetdist.train.run_folder import check_run_folder
from unetdist.train.run_status import read_status


def check_folders(exam: Examination) -> None:
    """Collective. Look for an earlier run, then try the folder of the run and that of its checkpoints."""
    exam.ask_main("run folder", lambda: find_run(exam))
    name = f".doctor-{secrets.token_hex(8)}"
    exam.ask_main("results", lambda: _try_results(exam, name))
    check_checkpoints(exam, name)


def existing(path: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    while not (path.exists() or path.is_symlink()) and path != path.parent:
        path = path.parent
    return path


def checkpoint_folder(exam: Examination) -> Folder:
    """Where checkpoints will be written, or the existing folder in which theirs will be made."""
    folder = exam.config.checkpoint.folder_of(exam.run_dir)
    return open_folder(existing(folder.path("").absolute())) if folder.is_local else folder


def find_run(exam: Examination) -> tuple[Level, str, str]:
    """Whether the folder holds a run already; one that these settings may not continue is an error."""
    cfg, values = exam.config.checkpoint, public(settings.to_mapping(exam.config))
    check_run_folder(exam.run_dir, values, cfg=cfg, defaults=settings.defaults(Config))
    if not has_checkpoint(cfg.folder_of(exam.run_dir)):
        return "ok", f"{exam.run_dir}: a new run", ""
    status = read_status(exam.run_dir)
    state = f"{status.state} at step {status.step:,}" if status else "of unknown state"
    fact = f"{exam.run_dir} holds a run ({state}), which the same command continues"
    is_running = status is not None and status.state == "running"
    return "warning" if is_running else "ok", fact, "make sure that it is not still running: two at once would spoil it"


def _try_results(exam: Examination, name: str) -> tuple[Level, str, str]:
    folder = open_folder(existing(exam.run_dir.absolute()))
    try:
        _write(folder, name, "--runs_dir")
    finally:
        _remove(folder, name)
    return "ok", f"{exam.run_dir} can be written to", ""


def check_checkpoints(exam: Examination, name: str) -> None:
    """Collective. Rank 0 writes a file, all ranks read it, and rank 0 removes it."""
    tried: list[Folder] = []

    def write() -> tuple[str, str] | None:
        if not exam.world.is_main:
            return None
        tried.append(checkpoint_folder(exam))
        _write(tried[0], name, "--checkpoint.folder or --runs_dir")
        return str(tried[0]), name

    def is_seen(where: str, name: str) -> bool:
        with suppress(OSError, UnetdistError):
            return open_folder(where).read(name) == name.encode()
        return False

    try:
        if answers := exam.ask("checkpoints", write):
            where, written = answers[0]
            judge_shared(exam, where, exam.ask("checkpoints", lambda: is_seen(where, written)) or [])
    finally:
        for folder in tried:
            _remove(folder, name)


def judge_shared(exam: Examination, where: str, is_seen: list[bool]) -> None:
    """Note ranks that do not see what rank 0 wrote."""
    blind = [str(rank) for rank, sees in enumerate(is_seen) if not sees]
    if blind:
        remedy = "give --checkpoint.folder, or --runs_dir, a place that all machines share"
        fact = f"rank {', '.join(blind)} does not see what rank 0 writes to {where}"
        exam.note("problem", "checkpoints", fact, remedy)
    else:
        together = f", and all {len(is_seen)} ranks read it" if len(is_seen) > 1 else ""
        exam.note("ok", "checkpoints", f"{where} can be written to{together}")


def _write(folder: Folder, name: str, option: str) -> None:
    try:
        folder.write(name, name.encode())
    except (OSError, UnetdistError) as error:
        # Without the name of the file, which says nothing to the user.
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ConfigError(
            f"{folder} cannot be written to ({reason}); give {option} a folder that you may write to, with free space."
        ) from None


def _remove(folder: Folder, name: str) -> None:
    with suppress(OSError, UnetdistError):  # it may never have been made
        folder.remove(name)
