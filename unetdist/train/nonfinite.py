"""Steps whose loss or gradient is not finite change nothing, and are told to the user with their samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unetdist.cli.logs import logger
from unetdist.distributed.collectives import World, all_reduce_sum

SAMPLES_NAMED = 8
"""Of one bad step, in the log."""


class BadSteps(NamedTuple):
    """What happened since the last report."""

    total: int
    longest_row: int
    """The longest row of bad steps that ended since then, or goes on."""


@dataclass(frozen=True)
class _Step:
    number: int
    ids: Tensor
    """(micro-batches, samples) int64 of this rank, on the host."""
    is_suspect: Tensor
    """(micro-batches,) bool of this rank: the loss is not finite."""
    is_bad: Tensor
    """() bool, the same on every rank."""


def finite_or_nan(share: Tensor) -> Tensor:
    """1 where the loss `share`, (), is finite, else NaN.

    Times this, a loss that is not finite spoils the gradient, even where its own gradient would be finite; and as
    gradients are summed over ranks, all of them learn of it without a collective of its own.
    """
    share = share.detach()
    return share - share + 1


def _begin_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momenta before its first step.

    It would make them without values, and leave them so where the step is skipped on the device: the next step would
    add whatever the memory held. From zero its first step is the same to the last bit, as nothing is dampened.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


class StepGuard:
    """Skips bad steps without waiting for the device, and remembers them until the host asks."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        world: World,
        *,
        is_scaled: bool = False,
        source_of: Callable[[int], str] = "sample {}".format,
    ) -> None:
        """Watch over a model and its optimizer.

        Args:
            model: not wrapped; the statistics of its norms are put back after a bad step.
            optimizer: as `Accelerator.prepare` gives it; it keeps weights and averages as they are in a bad step.
            world: this process among the others.
            is_scaled: fp16, where the scaler of the loss skips bad steps (and then scales less).
            source_of: where a sample comes from, by its id.
        """
        self._optimizer, self._world, self._source_of = optimizer, world, source_of
        # Accelerate's wrapper hides what is set on it.
        self._plain: Any = getattr(optimizer, "optimizer", optimizer)
        self._is_scaled = is_scaled
        self._skips_on_device = not is_scaled and all(
            group.get("fused") for group in self._plain.param_groups
        )
        self._has_begun = False
        self._steps: list[_Step] = []
        self._row = 0
        # Flat: a few kernels for the statistics of all norms.
        self._live = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = torch.cat([buffer.flatten() for buffer in self._live]) if self._live else None

    def before_forward(self) -> None:
        """Keep the statistics of the norms as they are now."""
        if self._kept is not None:
            torch.cat([buffer.flatten() for buffer in self._live], out=self._kept)

    def step(self, number: int, grad_norm: Tensor, shares: list[Tensor], ids: list[Tensor]) -> Tensor:
        """Let the optimizer make step `number`, unless its gradient is not finite.

        Args:
            number: steps done before this one.
            grad_norm: (), of the gradient summed over ranks.
            shares: (), of the loss, one for each micro-batch of this rank.
            ids: (samples,) of each micro-batch, equally many, on the host.

        Returns:
            Whether the step was bad: () bool on the device, the same on every rank.
        """
        if not self._has_begun:
            _begin_momenta(self._plain)
            self._has_begun = True
        is_bad = ~grad_norm.isfinite()
        if self._skips_on_device:
            self._plain.found_inf = is_bad.float()  # As GradScaler tells it.
            self._optimizer.step()
        elif self._is_scaled or not is_bad:
            self._optimizer.step()
        if self._kept is not None:
            now = torch.cat([buffer.flatten() for buffer in self._live])
            torch.where(is_bad, self._kept, now, out=now)
            parts = torch.split(now, [buffer.numel() for buffer in self._live])
            torch._foreach_copy_(
                self._live, [part.view_as(buffer) for part, buffer in zip(parts, self._live, strict=True)]
            )
        is_suspect = ~torch.stack([share.detach() for share in shares]).isfinite()
        self._steps.append(_Step(number, torch.stack(ids), is_suspect, is_bad))
        return is_bad

    def report(self) -> BadSteps:
        """Collective. Tell of the bad steps since the last report, with their samples; waits for the device."""
        steps, self._steps = self._steps, []
        flags = torch.stack([step.is_bad for step in steps]).tolist() if steps else []
        longest = 0
        for step, is_bad in zip(steps, flags, strict=True):
            self._row = self._row + 1 if is_bad else 0
            longest = max(longest, self._row)
            if is_bad:
                self._tell(step)
        return BadSteps(sum(flags), longest)

    def _tell(self, step: _Step) -> None:
        ids = step.ids.to(step.is_suspect.device) + 1  # 0: none
        rows = torch.zeros(self._world.world_size, 2, *ids.shape, dtype=torch.int64, device=ids.device)
        rows[self._world.rank] = torch.stack([ids * step.is_suspect[:, None], ids])
        suspects, all_ids = all_reduce_sum(rows).unbind(1)
        what, named = ("loss", suspects) if suspects.any() else ("gradient", all_ids)
        numbers = (named[named > 0] - 1).tolist()
        if self._world.is_main:
            sources = [self._source_of(number) for number in numbers[:SAMPLES_NAMED]]
            more = f" and {len(numbers) - SAMPLES_NAMED} more" if len(numbers) > SAMPLES_NAMED else ""
            logger.warning(
                "step %d was skipped: its %s is not finite%s; of samples %s%s",
                step.number + 1,
                what,
                " (the loss will be scaled less)" if self._is_scaled else "",
                ", ".join(sources),
                more,
            )
