"""Claims the folder of a run, and lets only a run with the same settings continue in it."""

import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unetdist.cli import settings
from unetdist.cli.credentials import public
from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, broadcast
from unetdist.distributed.rendezvous import first_of_launch
from unetdist.errors import ConfigError, UnetdistError
from unetdist.storage.checkpoint_files import CheckpointFolder, has_checkpoint
from unetdist.storage.files import HeldError, hold_lock
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.config import AUTO, SETTINGS_FILE, CheckpointConfig

# Lock held by rank 0 of the training that writes to the folder; it names its holder.
LOCK_FILE = ".lock"

# Longest wait for the previous training to end: a launcher may restart before its last process is gone.
WAIT_S = 30.0

# Settings (with a dot: whole sections) that may differ when a run is continued: they change how it runs and is
# watched, or its errors advise to change them. Results stay the same.
RESULT_NEUTRAL = (
    "name",
    "runs_dir",
    "data.train",  # the same shards may have moved; the manifest tells them apart
    "data.val",
    "data.num_workers",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_gb",
    "data.retry_s",
    "data.allow_pipe",  # of older runs
    "data.on_bad_sample",
    "data.max_bad_samples",
    "trainer.log_every",
    "trainer.timeout_s",
    "trainer.heartbeat_s",
    "trainer.max_bad_steps",
    "checkpoint.",
    "tracking.",
    "validation.",
)


def name_of_run(name: str, world: World) -> str:
    """Collective. Return the name, or for `auto` one that no other run has.

    It names the trial of a wandb sweep (WANDB_SWEEP_ID, WANDB_RUN_ID) or the task of a SLURM array, and is the same
    when that starts again. Without either it is the time and a random number, which torchrun's `--max_restarts` keeps.
    Any other restart would begin another run, such as that of a SLURM job outside of an array: give those a name.
    """
    return str(broadcast(_free_name(os.environ) if world.is_main else "", world.device)) if name == AUTO else name


def _free_name(environment: Mapping[str, str]) -> str:
    if run_id := environment.get("WANDB_RUN_ID"):
        sweep = environment.get("WANDB_SWEEP_ID")
        return re.sub(r"[^\w.-]", "-", f"{sweep}-{run_id}" if sweep else run_id).lstrip(".")
    if job := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{job}_{environment['SLURM_ARRAY_TASK_ID']}"
    return first_of_launch(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")


def claim_run_folder(
    folder: Path, values: Mapping[str, Any], *, cfg: CheckpointConfig, world: World, defaults: Mapping[str, Any]
) -> tuple[ExitStack, dict[str, Any]]:
    """Collective. Check that a run may start or continue in `folder`, and save its settings there.

    The first result keeps other trainings out of the folder and the folder of its checkpoints until it is closed, or
    the process ends; the second is `Trainer.fixed` of the last checkpoint, {} without one. `values` are the resolved
    settings as plain types, without credentials; `defaults` are the values of settings that an older version of the run
    did not have yet.

    Raises:
        ConfigError: on all ranks, if the folder holds a run that must not be continued, or not with these settings.
    """
    held = ExitStack()
    problem, fixed = "", {}
    if world.is_main:
        try:
            fixed = _claim(folder, values, cfg, defaults, held)
        except UnetdistError as error:
            problem = str(error)  # raised on all ranks, because the others wait for an answer
    problem, fixed = broadcast([problem, fixed], world.device)
    if problem:
        held.close()
        raise ConfigError(problem)
    return held, fixed


def _claim(
    folder: Path, values: Mapping[str, Any], cfg: CheckpointConfig, defaults: Mapping[str, Any], held: ExitStack
) -> dict[str, Any]:
    fixed: dict[str, Any] = {}
    homes = [("--runs_dir", open_folder(folder))]
    checkpoints = cfg.folder_of(folder)
    if cfg.folder is not None and (not checkpoints.is_local or checkpoints.path("").resolve() != folder.resolve()):
        homes.insert(0, ("--checkpoint.folder", checkpoints))  # may outlive the folder of the run
    for setting, home in homes:
        if home.is_local:  # object stores have no locks
            _hold(home, setting, held)
    if has_checkpoint(checkpoints):
        if cfg.resume == "never":
            raise ConfigError(
                f"{folder} holds a run, and checkpoint.resume is never; choose another --name ({AUTO}: a new one each "
                "time), or continue it with --checkpoint.resume auto."
            )
        # Checkpoints in another place have their settings next to them.
        _, home = homes[0]
        fixed = CheckpointFolder(checkpoints, keep_last=cfg.keep_last).newest_facts().get("fixed", {})
        if SETTINGS_FILE in home.names():
            read = settings.parse_yaml(home.read(SETTINGS_FILE), where=f"{home}/{SETTINGS_FILE}")
            saved = public(settings.laid_over(defaults, read))
            # Checkpoints of older versions lack the number, and None in their settings may stand for any.
            size = fixed.setdefault("micro_batch_size", saved["trainer"]["micro_batch_size"])
            asked = values["trainer"]["micro_batch_size"]
            saved["trainer"]["micro_batch_size"] = asked and (size or asked)
            _refuse_changes(folder, saved, values, cfg)
    for setting, home in homes:
        try:
            home.write(SETTINGS_FILE, settings.to_yaml(values).encode())
        except OSError as error:
            raise ConfigError(
                f"{home}/{SETTINGS_FILE} cannot be written ({error.strerror}); give {setting} a folder that you may "
                "write to, with room in it."
            ) from None
    return fixed


def _hold(home: Folder, setting: str, held: ExitStack) -> None:
    file = home.path(LOCK_FILE)
    waiting = "%s: another training writes there (%s); waiting up to %.0f s for it to end"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        lock = hold_lock(file, wait_s=WAIT_S, tell=lambda holder: logger.warning(waiting, home, holder, WAIT_S))
        held.enter_context(lock)
    except HeldError as error:
        raise ConfigError(
            f"{home}: another training writes there ({error}); wait for it or stop it, or choose another --name "
            f"or {setting}."
        ) from None
    except OSError:  # saving the settings will report a folder that is not writable
        return


def _refuse_changes(folder: Path, saved: Mapping[str, Any], values: Mapping[str, Any], cfg: CheckpointConfig) -> None:
    changed = {
        key: f"{key}: {before}, now it is {after}"
        for key, (before, after) in settings.differences(saved, values).items()
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in RESULT_NEUTRAL)
    }
    refused = [key for key in changed if key not in cfg.allow_changes]
    if refused:
        raise ConfigError(
            f"{folder} was started with {', and '.join(changed[key] for key in refused)}; continuing would mix two "
            f"runs. Choose another --name ({AUTO}: a new one for each trial of a sweep), or keep {', '.join(refused)}, "
            f"or accept the change with --checkpoint.allow_changes '[{', '.join([*cfg.allow_changes, *refused])}]'."
        )
    for change in changed.values():
        logger.warning("%s was started with %s: accepted because of checkpoint.allow_changes", folder, change)
