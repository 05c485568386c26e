"""The state of a run, saved so that it exists whole or not at all, and continued; tensors and JSON, no pickle."""

import json
import os
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from unetdist import storage
from unetdist.ema import Ema
from unetdist.errors import CheckpointError, ConfigError, TrainingError

TENSORS_FILE = "state.safetensors"
FACTS_FILE = "state.json"
POINTER_FILE = "latest"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is saved, and whether it is continued."""

    save_every: int | None = None
    """Steps between checkpoints; None: at each validation. The end of a run and a signal to stop always save one."""

    keep_last: int = 2
    """How many checkpoints to keep."""

    resume: Literal["auto", "never"] = "auto"
    """`auto` continues the run of this name if it has a checkpoint; `never` refuses to touch it."""

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last ({self.keep_last}) must be at least 1; use 2.")
        if self.save_every is not None and self.save_every < 1:
            raise ConfigError(f"checkpoint.save_every ({self.save_every}) must be at least 1 step, or null.")


class Checkpoints:
    """The resumable checkpoints of one run: `folder/step_00000042/`, and the pointer `folder/latest`.

    A checkpoint is written to a temporary folder, flushed, renamed, and only then pointed to: whenever the
    process dies, the pointer names a complete one.
    """

    def __init__(self, folder: str | os.PathLike[str], cfg: CheckpointConfig, *, data: str = "") -> None:
        """Open the folder of a run that trains on the data set with the fingerprint `data`."""
        self.folder = Path(folder)
        self.cfg = cfg
        self.data = data

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write one checkpoint; call on rank 0 only. Older ones than `keep_last` are removed afterwards."""
        final = self.folder / f"step_{step:08d}"
        if self._pointed() == final:
            return  # this step is saved already; replacing it would leave a moment without a checkpoint
        shutil.rmtree(final, ignore_errors=True)
        partial = final.with_suffix(storage.TEMPORARY_SUFFIX)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with storage.write_atomic(partial / TENSORS_FILE) as file:
            file.write(tensors_to_bytes(on_host))
        storage.write_json(partial / FACTS_FILE, {"data": self.data, **facts})
        partial.rename(final)
        storage.sync_folder(self.folder)
        storage.write_text(self.folder / POINTER_FILE, final.name)
        for old in self._complete()[: -self.cfg.keep_last]:
            shutil.rmtree(old)

    def load_latest(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the checkpoint that the pointer names; None if there is none."""
        path = self._pointed()
        if path is None:
            return None
        try:
            tensors = load_file(path / TENSORS_FILE, device=str(device))
            facts: dict[str, Any] = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
        except (SafetensorError, OSError, ValueError) as error:
            others = [other.name for other in self._complete() if other != path]
            raise CheckpointError(
                f"{path} is damaged ({error}); "
                + (
                    f"write {others[-1]} into {self.folder / POINTER_FILE} to use that one."
                    if others
                    else "start under another name."
                )
            ) from None
        if facts.pop("data", self.data) != self.data:
            raise CheckpointError(
                f"{path} was trained on other shards than those of data.train now; continuing would mix two runs. "
                "Choose another --name, or give the former shards."
            )
        return tensors, facts

    def diverged(self, what: str) -> TrainingError:
        """The error that ends a run before its checkpoints are spoilt."""
        return TrainingError(
            f"{what}; what {self.folder} holds is kept. Begin again under another --name with a lower --optim.lr, "
            "with --optim.clip_norm 1, or with --trainer.mixed_precision no."
        )

    def _pointed(self) -> Path | None:
        pointer = self.folder / POINTER_FILE
        return self.folder / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step_*") if not path.suffix)


class RunState:
    """The parts of a run whose state is saved: packs them into named tensors and JSON facts, and back."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Hold the unwrapped model, its optimizer, the averaged copy and the fp16 loss scaler, if any."""
        self.model, self.optimizer, self.ema, self.scaler = model, optimizer, ema, scaler

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and what is not a tensor."""
        state = self.optimizer.state_dict()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, values in state["state"].items():
            for name, value in values.items():
                if value is not None:  # SGD without momentum keeps a None
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        facts = {
            "param_groups": state["param_groups"],
            "ema_updates": 0 if self.ema is None else self.ema.num_updates,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return tensors, facts

    def unpack(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, source: object) -> None:
        """Put back what `pack` gave; `CheckpointError`, naming `source`, where it belongs to other parts."""
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer.", tensors).items():
            index, name = key.split(".", 1)
            optimizer.setdefault(int(index), {})[name] = value
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for position, parameter in enumerate(parameters):
            for name, value in optimizer.get(position, {}).items():
                if value.shape == parameter.shape:  # fused optimizers want the strides of the parameter
                    optimizer[position][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        try:
            self.model.load_state_dict(_under("model.", tensors))
            if self.ema is not None:
                averaged = _under("ema.", tensors)
                self.ema.load_state_dict({"module": averaged, "num_updates": facts["ema_updates"]})
            # Which kernel makes the step is a matter of this machine, not of the one that saved.
            groups = [
                {**saved, "fused": own.get("fused")}
                for saved, own in zip(facts["param_groups"], self.optimizer.param_groups, strict=True)
            ]
            self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
            if self.scaler is not None and facts["scaler"] is not None:
                self.scaler.load_state_dict(facts["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{source} was made by another model ({textwrap.shorten(str(error), 300)}); "
                "use that run's settings or another --name."
            ) from None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
