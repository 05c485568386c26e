"""The optimizer, its parameter groups, and the learning rate as a function of the step."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from unetdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning rate."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD with momentum."""

    lr: float = 1e-3
    """Highest learning rate, above 0; for sgd rather 0.01 to 0.1."""

    weight_decay: float = 0.0
    """At least 0, not on biases and norms (see `build_optimizer`); adamw keeps it out of the gradient."""

    layer_decay: float = 1.0
    """Factor, above 0 to 1, from the rate of each level of the network to that of the level before: with 0.8 the head
    has `lr`, the last level of the decoder 0.8 lr, the first of the encoder least (see `build_optimizer`)."""

    momentum: float = 0.9
    """For sgd; 0 to below 1."""

    nesterov: bool = False
    """For sgd: Nesterov's momentum; needs a momentum above 0."""

    betas: tuple[float, float] = (0.9, 0.999)
    """For adam and adamw: decay of the averages of gradient and squared gradient, each 0 to below 1."""

    schedule: Literal["constant", "poly", "cosine"] = "cosine"
    """How the rate falls after the warm-up: not at all; (1 - t)^poly_power; half a cosine wave."""

    warmup_steps: int = 0
    """Steps over which the rate rises in a line to `lr`."""

    poly_power: float = 0.9
    """Exponent of `poly`, above 0."""

    min_lr_factor: float = 0.0
    """Fraction of `lr`, 0..1, that poly and cosine fall to. A step after the last would have it, as with torch's
    CosineAnnealingLR and PolynomialLR: the last of 100 steps has 0.0002 (cosine) or 0.016 (poly) where this is 0."""

    clip_norm: float = 0.0
    """Gradients are scaled down to this L2 norm over all parameters; 0 is off."""

    def __post_init__(self) -> None:
        for name, holds, demand in (
            ("lr", 0 < self.lr < math.inf, "above 0; use 0.001"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0; use 0 for none"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1; use 0.9, or 1 for none"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1; use 0.9"),
            ("nesterov", self.momentum > 0 or not self.nesterov, "false without momentum; use momentum: 0.9"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1; use [0.9, 0.999]"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0; use 0 for none"),
            ("poly_power", 0 < self.poly_power < math.inf, "above 0; use 0.9"),
            ("min_lr_factor", 0 <= self.min_lr_factor <= 1, "between 0 and 1; use 0"),
            ("clip_norm", 0 <= self.clip_norm < math.inf, "at least 0; use 0 for no clipping"),
        ):
            if not holds:
                raise ConfigError(f"optim.{name} ({getattr(self, name)}) must be {demand}.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of a model, which is already on its device.

    Two groups: weights of two or more dimensions, which decay, and biases and norms, which do not (decay
    would pull a norm's scale to 0, and the signal with it). With `layer_decay` these two for each level of the network,
    the head first, whose rate is multiplied by layer_decay ** (levels to the head): Clark et al. 2020, arXiv
    2003.10555, and Bao et al. 2021, arXiv 2106.08254, for networks that begin with pretrained weights. On CUDA the
    fused implementation steps without waiting.
    """
    distances = levels_to_the_head(model) if config.layer_decay < 1 else {}
    parameters = [
        (distances.get(name, 0), parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    groups = [
        {
            "params": [p for levels, p in parameters if levels == distance and (p.ndim > 1) == decays],
            "lr": config.lr * config.layer_decay**distance,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for distance in sorted({levels for levels, _ in parameters})
        for decays in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.is_cuda for _, parameter in parameters) or None
    match config.kind:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        case "sgd":
            return torch.optim.SGD(
                groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
            )


def levels_to_the_head(model: nn.Module) -> dict[str, int]:
    """Of each parameter, the levels between it and the output along the network's U; heads have 0.

    A level is what has a number in encoder or decoder (`encoder.0`), a stage of a network of timm
    (`backbone.net.layer1`), or else a part of the network (`bottleneck`); they are registered as they are computed.
    """
    levels = {name: _level(name) for name, _ in model.named_parameters()}
    way = list(dict.fromkeys(levels.values()))
    return {name: len(way) - 1 - way.index(level) for name, level in levels.items()}


def _level(name: str) -> str:
    numbered = re.match(r"(encoder|decoder)\.\D*\d+|backbone\.net\.(layer|stages?|blocks|s)[._]?\d+", name)
    return numbered[0] if numbered else name.split(".")[0].replace("aux_heads", "head")


def lr_factor(step: int, max_steps: int, config: OptimConfig) -> float:
    """What `lr` is multiplied by in `step`, the number of optimizer steps done before it: 0..max_steps-1.

    Rises as (step + 1) / (warmup_steps + 1), is 1 at step `warmup_steps`, then falls with
    t = (step - warmup_steps) / (max_steps - warmup_steps), which stays below 1.

    Raises:
        ConfigError: If the warm-up leaves no step to train at the full rate.
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
