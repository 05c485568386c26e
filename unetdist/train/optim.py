"""The optimizer, its parameter groups, the learning rate as a function of the step, and averaged weights."""

import copy
import itertools
import math
import re

import torch
from torch import nn

from unetdist.errors import ConfigError
from unetdist.train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a model that is already on its device.

    Weights of two or more dimensions decay; biases and norms form a group that does not. With `layer_decay` each level
    of the network has these two groups, head first, at the rate lr * layer_decay ** (levels to the head): Clark et al.
    2020, arXiv 2003.10555, and Bao et al. 2021, arXiv 2106.08254, for networks that start from pretrained weights.
    """
    distances = levels_to_the_head(model) if config.layer_decay < 1 else {}
    parameters = [
        (distances.get(name, 0), parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    groups = []
    for distance, decays in itertools.product(sorted({levels for levels, _ in parameters}), (True, False)):
        lr = config.lr * config.layer_decay**distance
        # Decay would pull the scale of a norm to 0, and the signal with it.
        weight_decay = config.weight_decay if decays else 0.0
        members = [p for levels, p in parameters if levels == distance and (p.ndim > 1) == decays]
        if members:
            groups.append({"params": members, "lr": lr, "weight_decay": weight_decay})
    # On CUDA the fused implementation steps without waiting for the device.
    fused = all(parameter.is_cuda for _, parameter in parameters) or None
    if config.kind == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    adam = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return adam(groups, betas=config.betas, fused=fused)


def levels_to_the_head(model: nn.Module) -> dict[str, int]:
    """Count the levels between each parameter and the output along the network's U; heads have 0.

    A level is a numbered part of encoder or decoder (`encoder.0`), a stage of a timm network (`backbone.net.layer1`),
    or any other part of the network (`bottleneck`).
    """
    # Parts are registered in the order in which they compute.
    levels = {name: _level(name) for name, _ in model.named_parameters()}
    order = list(dict.fromkeys(levels.values()))
    return {name: len(order) - 1 - order.index(level) for name, level in levels.items()}


def _level(name: str) -> str:
    numbered = re.match(r"(encoder|decoder)\.\D*\d+|backbone\.net\.(layer|stages?|blocks|s)[._]?\d+", name)
    return numbered[0] if numbered else name.split(".")[0].replace("aux_heads", "head")


def lr_factor(step: int, max_steps: int, config: OptimConfig) -> float:
    """Factor of `lr` in the step that follows `step` others, 0..max_steps-1.

    Rises as (step + 1) / (warmup_steps + 1), is 1 at step `warmup_steps`, then falls with
    t = (step - warmup_steps) / (max_steps - warmup_steps), which stays below 1. Raises `ConfigError` if the warm-up
    leaves no step at the full rate.
    """
    if config.warmup_steps >= max_steps:
        raise ConfigError(
            f"optim.warmup_steps ({config.warmup_steps}) must be below the {max_steps} steps of the run; "
            f"use at most {max_steps - 1}."
        )
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = min((step - config.warmup_steps) / (max_steps - config.warmup_steps), 1.0)
    match config.schedule:
        case "constant":
            return 1.0
        case "poly":
            left = math.pow(1 - done, config.poly_power)
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr_factor + (1 - config.min_lr_factor) * left


class Ema:
    """Exponential moving average of a model's weights, for validation and as the result of training.

    After each step, average = d * average + (1 - d) * model for all weights; `NormStatistics` does the same with the
    statistics of batch norm, which belong to the weights that they were taken with. d is `decay`, but at the n-th
    update from 0 at most (1 + n) / (10 + n), so that the random start is soon forgotten.
    The model is on its device, neither wrapped nor compiled; its average is `module`, in eval mode without gradients.
    """

    # torch's AveragedModel counts updates on the device, and so waits for it at each step.

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> float:
        """Average in the weights of the (unwrapped) model, after each optimizer step; returns d."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        # One kernel for all tensors, as in torch.optim.swa_utils.
        torch._foreach_lerp_([*self.module.parameters()], [*model.parameters()], 1 - decay)
        self.num_updates += 1
        return decay
