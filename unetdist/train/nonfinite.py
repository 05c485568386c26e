"""Skips steps whose loss or gradient is not finite, and logs their samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, gather_to

# Most samples of a skipped step that the log names.
SAMPLES_NAMED = 8


class SkippedSteps(NamedTuple):
    """Steps that were skipped since the last report."""

    total: int
    longest_row: int
    """Most skipped steps in a row; a row may have started before the last report."""


class _Step(NamedTuple):
    number: int
    ids: Tensor
    """(micro-batches, samples) int64, samples of this rank, on the host."""
    is_nonfinite: Tensor
    """(micro-batches,) bool, losses of this rank."""
    is_skipped: Tensor
    """() bool, the same on every rank."""


def finite_or_nan(loss: Tensor) -> Tensor:
    """1 if the loss () is finite, otherwise NaN: a factor of the loss.

    With it a loss that is not finite spoils the gradient even if its own gradient would be finite. Gradients are summed
    over ranks, so every rank learns of it without another collective.
    """
    loss = loss.detach()
    return loss - loss + 1


def _create_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momenta before the first step."""
    # It would create them uninitialised, and leave them so if the step is skipped on the device: the next step would
    # add whatever the memory held. Starting from zero gives the same first step to the last bit (dampening is 0).
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


class NonFiniteGuard:
    """Skips steps that are not finite without waiting for the device, and counts them until the host asks."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        world: World,
        *,
        is_scaled: bool = False,
        source_of: Callable[[int], str] = "sample {}".format,
    ) -> None:
        """Guard the weights of an optimizer, which `Accelerator.prepare` returned.

        With `is_scaled` fp16 scales the loss, and its scaler skips steps (and scales less). `source_of` turns the id
        of a sample into its place in the shards.
        """
        self._optimizer, self._world, self._source_of = optimizer, world, source_of
        # Accelerate's wrapper hides attributes that are set on it.
        self._plain: Any = getattr(optimizer, "optimizer", optimizer)
        self._is_scaled = is_scaled
        self._skips_on_device = not is_scaled and all(group.get("fused") for group in self._plain.param_groups)
        self._has_stepped = False
        self._steps: list[_Step] = []
        self._row = 0

    def step(self, number: int, grad_norm: Tensor, losses: list[Tensor], ids: list[Tensor]) -> Tensor:
        """Let the optimizer make the step that follows `number` others, unless its gradient is not finite.

        Args:
            number: steps done before this one.
            grad_norm: (), norm of the gradient summed over ranks.
            losses: () for each micro-batch of this rank.
            ids: (samples,) for each micro-batch, all of the same length, on the host.

        Returns whether the step was skipped: () bool on the device, the same on every rank.
        """
        if not self._has_stepped:
            _create_momenta(self._plain)
            self._has_stepped = True
        is_skipped = ~grad_norm.isfinite()
        if self._skips_on_device:
            self._plain.found_inf = is_skipped.float()  # the attribute that GradScaler sets
            self._optimizer.step()
        elif self._is_scaled or not is_skipped:
            self._optimizer.step()
        is_nonfinite = ~torch.stack([loss.detach() for loss in losses]).isfinite()
        self._steps.append(_Step(number, torch.stack(ids), is_nonfinite, is_skipped))
        return is_skipped

    def report(self) -> SkippedSteps:
        """Collective. Log the steps skipped since the last report with their samples; waits for the device."""
        steps, self._steps = self._steps, []
        flags = torch.stack([step.is_skipped for step in steps]).tolist() if steps else []
        longest = 0
        for step, is_skipped in zip(steps, flags, strict=True):
            self._row = self._row + 1 if is_skipped else 0
            longest = max(longest, self._row)
            if is_skipped:
                self._log(step)
        return SkippedSteps(sum(flags), longest)

    def _log(self, step: _Step) -> None:
        """Collective. Name the samples whose loss is not finite, or else all samples of the step."""
        ids = step.ids.to(step.is_nonfinite.device) + 1  # 0 stands for no sample
        ranks = gather_to(0, torch.stack([ids * step.is_nonfinite[:, None], ids]))
        if not self._world.is_main:
            return
        nonfinite, all_ids = torch.stack(ranks, dim=1)
        what, named = ("loss", nonfinite) if nonfinite.any() else ("gradient", all_ids)
        numbers = (named[named > 0] - 1).tolist()
        sources = [self._source_of(number) for number in numbers[:SAMPLES_NAMED]]
        logger.warning(
            "skipped step %d: its %s is not finite%s; samples: %s%s",
            step.number + 1,
            what,
            " (the loss scale is lowered)" if self._is_scaled else "",
            ", ".join(sources),
            f" and {len(numbers) - SAMPLES_NAMED} more" if len(numbers) > SAMPLES_NAMED else "",
        )
