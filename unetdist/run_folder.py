"""The folder of a run belongs to one set of settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from unetdist import settings, storage
from unetdist.checkpoint import POINTER_FILE
from unetdist.distributed import World, barrier
from unetdist.errors import ConfigError

SETTINGS_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"

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
    "data.allow_pipe",
    "data.on_bad_sample",
    "data.max_bad_samples",
    "trainer.micro_batch_size",
    "trainer.log_every",
    "trainer.timeout_s",
    "checkpoint.",
    "tracking.",
    "validation.",
)
"""Settings (with a dot: whole sections) that may differ when a run is continued: how it is run and watched, and the
remedies that errors of a run advise. What is learnt stays the same up to batch norm's share of the batch."""


def claim_run_folder(
    folder: Path, values: Mapping[str, Any], *, resume: Literal["auto", "never"], world: World
) -> None:
    """Collective. Make sure that a run in `folder` may be begun or continued, and save its settings there.

    Args:
        folder: of the run.
        values: resolved settings, as plain types.
        resume: `never` refuses a folder that has a checkpoint.
        world: this process among the others.

    Raises:
        ConfigError: the folder holds a run that must not be continued, or not with these settings.
    """
    saved = folder / SETTINGS_FILE
    if (folder / CHECKPOINTS_FOLDER / POINTER_FILE).exists() and saved.exists():
        if resume == "never":
            raise ConfigError(
                f"{folder} holds a run, and checkpoint.resume is never; choose another --name, "
                "or continue it with --checkpoint.resume auto."
            )
        changed = {
            key: f"{key}: {before}, now it is {after}"
            for key, (before, after) in settings.differences(settings.read_yaml(saved), values).items()
            if not any(
                key == name or (name.endswith(".") and key.startswith(name)) for name in RESULT_NEUTRAL
            )
        }
        if changed:
            raise ConfigError(
                f"{folder} was begun with {', and '.join(changed.values())}; continuing would mix two runs. "
                f"Choose another --name, or keep {', '.join(changed)}."
            )
    barrier()  # nobody writes before everybody has read
    if world.is_main:
        try:
            storage.write_text(saved, settings.to_yaml(values))
        except OSError as error:
            raise ConfigError(
                f"{saved} cannot be written ({error.strerror}); give --runs_dir a folder that you may write to."
            ) from None
