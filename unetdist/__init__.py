"""unetdist trains U-Nets for semantic segmentation on one CPU, one GPU or many machines."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdist.data.labels import Palette
    from unetdist.evaluation.metrics import Scores, confusion_matrix
    from unetdist.model.config import InferenceConfig
    from unetdist.predict.hub import UNet
    from unetdist.train.call import TrainedRun, train

__all__ = ["InferenceConfig", "Palette", "Scores", "TrainedRun", "UNet", "confusion_matrix", "train"]

__version__ = "0.1.0"

# This process and its parent before torch was loaded, which takes seconds: see `signals.follow_launcher`.
STARTED_BY = (os.getpid(), os.getppid())

_MODULES = {
    "InferenceConfig": "unetdist.model.config",
    "Palette": "unetdist.data.labels",
    "Scores": "unetdist.evaluation.metrics",
    "TrainedRun": "unetdist.train.call",
    "UNet": "unetdist.predict.hub",
    "confusion_matrix": "unetdist.evaluation.metrics",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, because torch takes seconds.
    if name == "train":  # a package that can be called
        return import_module("unetdist.train")
    if name not in _MODULES:
        raise AttributeError(f"module 'unetdist' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
