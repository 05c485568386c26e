"""An exponential moving average of a model's weights and buffers."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from unetdist.errors import ConfigError


class Ema:
    """Averaged copy of a model, for validation and as the result of training.

    After each step, average = d * average + (1 - d) * model for weights and for floating buffers (the
    statistics of batch norm belong to the weights they were taken with); integer buffers are copied. d is
    `decay`, at first less: min(decay, (1 + n) / (10 + n)) at the n-th update from 0, so that the random
    start is soon forgotten. (torch's `AveragedModel` counts on the device, and so waits for it at each
    step.)

    Args:
        model: What to average, not wrapped (no DDP, not compiled), on its device already.
        decay: 0 to below 1; 0.999 averages over about the last 1000 steps.

    Attributes:
        module: The averaged copy, in eval mode, without gradients.
        num_updates: How often `update` was called.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay ({decay}) must be at least 0 and below 1; use 0.999")
        self.decay = decay
        self.num_updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present state of the (unwrapped) model; to be called after each optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, values = [], []
        for average, value in zip(_tensors(self.module), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        # One kernel for all, as in torch.optim.swa_utils.
        torch._foreach_lerp_(averages, values, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly: the copy's own state and the number of updates."""
        return {"module": self.module.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.num_updates = int(state["num_updates"])


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers, in an order that a copy of the model shares."""
    return [*model.parameters(), *model.buffers()]
