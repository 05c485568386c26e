"""The state of a run, saved beside the training and continued by all processes; tensors and JSON, no pickle."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, all_reduce_sum, broadcast
from unetdist.errors import CheckpointError, ConfigError, TrainingError, UnetdistError
from unetdist.storage import remote
from unetdist.storage.checkpoint_files import CheckpointFolder, Commit
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.snapshot import HostCopy

CHECKPOINTS_FOLDER = "checkpoints"

PATIENCE_S = 60.0
"""How long a step waits at most for the checkpoint before: a disk or a server that hangs is no reason not to train."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is saved, where, and whether it is continued."""

    save_every: int | None = None
    """Steps between checkpoints; None: at each validation. The end of a run and a signal to stop always save one."""

    keep_last: int = 2
    """How many checkpoints to keep."""

    folder: str | None = None
    """Path or URL (s3://, gs://, ...) under which the checkpoints lie in a folder of the run's name; all nodes must see
    it. None: RUNS_DIR/NAME/checkpoints."""

    resume: Literal["auto", "never"] = "auto"
    """`auto` continues the run of this name if it has a checkpoint; `never` refuses to touch it."""

    allow_changes: tuple[str, ...] = ()
    """Settings (optim.lr, ...) that may differ from those the run was begun with, though they change its result."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last ({self.keep_last}) must be at least 1; use 2.")
        if self.save_every is not None and self.save_every < 1:
            raise ConfigError(f"checkpoint.save_every ({self.save_every}) must be at least 1 step, or null.")
        if self.folder is not None and self.folder.startswith(("http:", "https:")):
            raise ConfigError(
                f"checkpoint.folder ({mask(self.folder)}) cannot be written to; give a path, or a URL such as s3://bucket/runs."
            )

    def folder_of(self, run_dir: Path) -> Folder:
        """Where the run in `run_dir` has its checkpoints."""
        if self.folder is None:
            return open_folder(run_dir / CHECKPOINTS_FOLDER)
        is_url = remote.is_url(self.folder)
        return open_folder(
            remote.join(self.folder, run_dir.name) if is_url else Path(self.folder, run_dir.name)
        )


class Checkpoints:
    """The resumable checkpoints of one run; see `unetdist.storage.checkpoint_files` for their files."""

    def __init__(self, folder: str | Path | Folder, cfg: CheckpointConfig, *, data: str = "") -> None:
        """Open the folder of a run that trains on the data set with the fingerprint `data`."""
        self.folder = open_folder(folder)
        self.data = data
        self._may_change_data = "data.train" in cfg.allow_changes
        self._commits = CheckpointFolder(self.folder, keep_last=cfg.keep_last)
        self._copy = HostCopy()
        self._writer: threading.Thread | None = None

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, final: bool = False
    ) -> None:
        """Save the state after `step`; call on rank 0 only.

        Returns once the checkpoint before is written and the tensors are copied to the host's memory; a thread hashes
        and writes the copy. Where it cannot, or not in time for the next, the log says so and training goes on: the
        former checkpoint stays.

        Args:
            step: steps done; of one that is saved already only the facts are saved anew.
            tensors: on any device.
            facts: JSON types.
            final: write before returning, for there is no later one.

        Raises:
            CheckpointError: the final one cannot be written.
        """
        began = time.monotonic()
        if not self.wait(None if final else PATIENCE_S):
            logger.error(
                "no checkpoint of step %d: the one before is still being written to %s", step, self.folder
            )
            return
        own_facts = json.loads(json.dumps({"data": self.data, **facts}, allow_nan=False))
        last = self._commits.last
        if last is not None and (last.step, last.facts) == (step, own_facts):
            return
        copied = self._copy.take(tensors)
        waited_s = time.monotonic() - began
        if final:
            self._write(step, copied, own_facts, waited_s)
            return
        # No daemon, so that an interpreter that ends waits for it.
        self._writer = threading.Thread(
            target=self._write_or_tell, args=(step, copied, own_facts, waited_s), name="checkpoint"
        )
        self._writer.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until what was saved is written, or could not be; False where that takes longer than `timeout_s`."""
        if self._writer is not None:
            self._writer.join(timeout_s)
            if self._writer.is_alive():
                return False
            self._writer = None
        return True

    def close(self) -> None:
        """Wait for the last one, and give back the memory of its copy."""
        self.wait()
        self._copy = HostCopy()

    def load_latest(self, world: World) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Collective. Tensors (on the device of `world`) and facts of the newest whole one; None if there is none.

        Raises:
            CheckpointError: on all ranks, where none is whole, it belongs to other data, or a rank cannot read it.
        """
        found, problem = _try(self._choose) if world.is_main else (None, "")
        told, problem = broadcast([found and asdict(found[0]), problem], world.device)
        if problem:
            raise CheckpointError(problem)
        if told is None:
            return None
        commit = Commit(**told)
        if found is None:
            found, problem = _try(lambda: (commit, self._commits.tensors(commit)))
        failed = torch.zeros(world.world_size, dtype=torch.int64, device=world.device)
        failed[world.rank] = int(found is None)
        if ranks := all_reduce_sum(failed).nonzero().flatten().tolist():
            raise CheckpointError(
                f"rank {', '.join(map(str, ranks))} cannot read the checkpoint of step {commit.step} that rank 0 reads "
                f"in {self.folder}{problem and f' ({problem})'}; give --checkpoint.folder, or --runs_dir, a place that "
                "all nodes share."
            )
        assert found is not None  # else this rank were among the failed
        tensors = tensors_from_bytes(found[1])
        facts = {name: value for name, value in commit.facts.items() if name != "data"}
        return {name: value.to(world.device) for name, value in tensors.items()}, facts

    def diverged(self, what: str) -> TrainingError:
        """The error that ends a run before its checkpoints are spoilt."""
        self.wait()
        return TrainingError(
            f"{what}; what {self.folder} holds is kept. Begin again under another --name with a lower --optim.lr, "
            "with --optim.clip_norm 1, or with --trainer.mixed_precision no."
        )

    def _write(self, step: int, tensors: memoryview, facts: dict[str, Any], waited_s: float) -> None:
        began = time.monotonic()
        former = self._commits.last
        try:
            self._commits.write(step, tensors, facts)
        except (OSError, UnetdistError) as error:
            kept = "there is none yet" if former is None else f"that of step {former.step} is kept"
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({error}); {kept}. Make room there, "
                "or give --checkpoint.folder another place."
            ) from None
        logger.info(
            "checkpoint of step %d: %.1f MB, the step waited %.0f ms, written in %.1f s",
            step,
            len(tensors) / 1e6,
            1e3 * waited_s,
            time.monotonic() - began,
        )

    def _write_or_tell(self, step: int, *args: Any) -> None:
        try:
            self._write(step, *args)
        except CheckpointError as error:
            logger.error("%s Training goes on.", error)

    def _choose(self) -> tuple[Commit, bytes] | None:
        """The newest whole one and its tensors, if it may be continued; None if there is none."""
        found = self._commits.newest()
        if found and found[0].facts["data"] != self.data and not self._may_change_data:
            raise CheckpointError(
                f"the checkpoint of step {found[0].step} in {self.folder} was trained on other shards than those of "
                "data.train now; continuing would mix two runs. Choose another --name, give the former shards, or "
                "accept it with --checkpoint.allow_changes '[data.train]'."
            )
        return found


def _try(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` returns, or what is wrong, in words: the other processes wait for this one, whatever happens."""
    try:
        return read(), ""
    except UnetdistError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the checkpoints cannot be read ({error}); mend that, and run the same command again."
