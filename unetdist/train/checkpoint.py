"""The state of a run, saved while training continues and loaded by all processes; tensors and JSON, no pickle."""

import json
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, all_gather, broadcast
from unetdist.errors import CheckpointError, TrainingError, UnetdistError
from unetdist.storage.checkpoint_files import CheckpointFolder, Commit
from unetdist.storage.folders import Folder, open_folder
from unetdist.train.config import CheckpointConfig
from unetdist.train.norm_statistics import NormStatistics
from unetdist.train.optim import Ema

# Longest wait of a step for the previous checkpoint: training continues while a disk or a server hangs.
PATIENCE_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class RunState:
    """The parts of a run whose state is saved: packs them into named tensors and JSON facts, and back."""

    model: nn.Module
    """Not wrapped."""
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss in fp16."""
    statistics: NormStatistics | None = None
    """Settled, see `NormStatistics.settle`."""

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and everything else as JSON types."""
        state = self.optimizer.state_dict()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in state["state"].items():
            for name, value in values.items():
                if value is not None:  # SGD without momentum keeps a None
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        if self.statistics is not None:
            tensors |= {f"statistics.{index}": copies for index, copies in enumerate(self.statistics.settled)}
        facts = {
            "param_groups": state["param_groups"],
            "ema_updates": 0 if self.ema is None else self.ema.num_updates,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return tensors, facts

    def unpack(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, source: object) -> None:
        """Restore what `pack` returned; raises `CheckpointError` if the `source` belongs to another model."""
        try:
            self.model.load_state_dict(_with_prefix("model.", tensors))
            if self.ema is not None:
                self.ema.module.load_state_dict(_with_prefix("ema.", tensors))
                self.ema.num_updates = int(facts["ema_updates"])
            if self.statistics is not None:
                copies = _with_prefix("statistics.", tensors)
                self.statistics.begin(copies[name] for name in sorted(copies))  # safetensors come in random order
            # allow_changes may have changed settings, and another machine may use another implementation: the settings
            # of the new optimizer count, except for the learning rate of this step.
            groups = [
                {**own, "params": saved["params"], "lr": saved["lr"]}
                for saved, own in zip(facts["param_groups"], self.optimizer.param_groups, strict=True)
            ]
            state = self._optimizer_state(tensors)
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            if self.scaler is not None and facts["scaler"] is not None:
                self.scaler.load_state_dict(facts["scaler"])
        except (RuntimeError, ValueError, LookupError) as error:
            raise CheckpointError(
                f"{source} was made by another model ({textwrap.shorten(str(error), 300)}); "
                "use that run's settings or another --name."
            ) from None

    def _optimizer_state(self, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _with_prefix("optimizer.", tensors).items():
            index, name = key.split(".", 1)
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:  # fused optimizers need the strides of the parameter
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[name] = value
        return state


class Checkpoints:
    """The checkpoints of one run; see `unetdist.storage.checkpoint_files` for their files."""

    def __init__(self, folder: str | Path | Folder, cfg: CheckpointConfig, *, data: str = "") -> None:
        """Open the folder of a run that trains on the data set with the fingerprint `data`."""
        self.folder = open_folder(folder)
        self.data = data
        self._may_change_data = "data.train" in cfg.allow_changes
        self._files = CheckpointFolder(self.folder, keep_last=cfg.keep_last)
        self._writer: threading.Thread | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, final: bool = False) -> None:
        """Save the state after `step`; call on rank 0 only.

        Returns once the previous checkpoint is written and the tensors are copied to host memory; a thread writes the
        copy. If it fails, or is not done in time for the next, that is logged, and training continues with the previous
        checkpoint in place. The `final` one is written before this returns, or raises `CheckpointError`. If this step
        is already saved, only its facts, which are JSON types, are replaced.
        """
        start = time.monotonic()
        if not self.wait(None if final else PATIENCE_S):
            logger.error("no checkpoint of step %d: the previous one is still being written to %s", step, self.folder)
            return
        own_facts = json.loads(json.dumps({"data": self.data, **facts}, allow_nan=False))
        last = self._files.last
        if last is not None and (last.step, last.facts) == (step, own_facts):
            return
        # Safetensors need tensors without gaps, and training changes the originals meanwhile.
        copies = {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
        job = (step, copies, own_facts, time.monotonic() - start)
        if final:
            self._write(*job)
            return
        # Not a daemon, so that an interpreter that exits waits for it.
        self._writer = threading.Thread(target=self._write_or_log, args=job, name="checkpoint")
        self._writer.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the last checkpoint is written or has failed; False if that takes longer than `timeout_s`."""
        if self._writer is None:
            return True
        self._writer.join(timeout_s)
        return not self._writer.is_alive()

    def load_latest(self, world: World) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Collective. Load tensors (to the device of `world`) and facts of the newest whole checkpoint; None: none.

        Raises `CheckpointError` on all ranks if none is whole, it belongs to other data, or a rank cannot read it.
        """
        found, problem = _try(self._newest) if world.is_main else (None, "")
        sent, problem = broadcast([found and asdict(found[0]), problem], world.device)
        if problem:
            raise CheckpointError(problem)
        if sent is None:
            return None
        commit = Commit(**sent)
        if found is None:
            found, problem = _try(lambda: (commit, self._files.tensors(commit)))
        failed = torch.tensor([int(found is None)], device=world.device)
        if ranks := all_gather(failed).nonzero().flatten().tolist():
            raise CheckpointError(
                f"rank {', '.join(map(str, ranks))} cannot read the checkpoint of step {commit.step} that rank 0 reads "
                f"in {self.folder}{problem and f' ({problem})'}; give --checkpoint.folder, or --runs_dir, a place that "
                "all nodes share."
            )
        assert found is not None  # otherwise this rank would be among those that failed
        tensors = tensors_from_bytes(found[1])
        facts = {name: value for name, value in commit.facts.items() if name != "data"}
        return {name: value.to(world.device) for name, value in tensors.items()}, facts

    def diverged(self, what: str) -> TrainingError:
        """Build the error that ends a run before a checkpoint holds weights that are not finite."""
        self.wait()
        return TrainingError(
            f"{what}; the checkpoints in {self.folder} are kept. Start again under another --name with a lower "
            "--optim.lr, with --optim.clip_norm 1, or with --trainer.mixed_precision no."
        )

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], waited_s: float) -> None:
        start = time.monotonic()
        previous = self._files.last
        try:
            data = tensors_to_bytes(tensors, {"format": "pt"})
            self._files.write(step, data, facts)
        except (OSError, MemoryError, SafetensorError, UnetdistError) as error:
            kept = "there is none yet" if previous is None else f"that of step {previous.step} is kept"
            cause = str(error) or type(error).__name__  # a MemoryError has no text
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written to {self.folder} ({cause}); {kept}. Make room there, "
                "or give --checkpoint.folder another place."
            ) from None
        told = "checkpoint of step %d saved: %.1f MB in %.1f s (training waited for %.0f ms)"
        logger.info(told, step, len(data) / 1e6, time.monotonic() - start, 1e3 * waited_s)

    def _write_or_log(self, step: int, *args: Any) -> None:
        try:
            self._write(step, *args)
        except CheckpointError as error:
            logger.error("%s Training continues.", error)

    def _newest(self) -> tuple[Commit, bytes] | None:
        """The newest whole checkpoint with its tensors, if it may be continued; None if there is none."""
        found = self._files.newest()
        if found and found[0].facts["data"] != self.data and not self._may_change_data:
            raise CheckpointError(
                f"the checkpoint of step {found[0].step} in {self.folder} was trained on other shards than those of "
                "data.train now; continuing would mix two runs. Choose another --name, give the former shards, or "
                "accept it with --checkpoint.allow_changes '[data.train]'."
            )
        return found


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _try(read: Callable[[], T]) -> tuple[T | None, str]:
    """Result of `read`, or its error as text: the other processes wait for this one to send either."""
    try:
        return read(), ""
    except UnetdistError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the checkpoints cannot be read ({error}); fix that, and run the same command again."
