"""A training run.

In: settings (`config`). Out: a run folder with checkpoints, metrics, and the weights of the best validation mIoU.
`build` wires the parts, `trainer` is the loop, `step` makes one optimizer step. README.md walks through them.
"""

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdist.train.call import TrainedRun


class _Room(ModuleType):
    """This package, which can be called, because `unetdist.train(...)` trains."""

    def __call__(
        self,
        config: "str | os.PathLike[str] | Mapping[str, Any] | None" = None,
        *,
        processes: int | None = None,
        **changes: Any,
    ) -> "TrainedRun":
        """Train, or continue the run of this name; see `unetdist.train.call.train`."""
        from unetdist.train.call import train

        return train(config, processes=processes, **changes)


sys.modules[__name__].__class__ = _Room
