"""The parts of a run as named tensors and JSON facts, and back: what a checkpoint holds."""

import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unetdist.errors import CheckpointError
from unetdist.train.ema import Ema


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
            # The settings rule, for they may have been changed with leave, and the kernel that is best on this machine.
            groups = [
                {**own, "params": saved["params"], "lr": saved["lr"]}
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
