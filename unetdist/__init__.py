"""unetdist trains U-Nets for semantic segmentation, with the same result on any number of processes."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdist.model.inference import InferenceConfig as InferenceConfig
    from unetdist.predict.hub import UNet as UNet

__version__ = "0.1.0"

STARTED_BY = (os.getpid(), os.getppid())
"""This process and its parent before torch was loaded, which takes seconds: see `signals.follow_launcher`."""

FACE = {"UNet": "unetdist.predict.hub", "InferenceConfig": "unetdist.model.inference"}
"""What a user of trained models needs; loaded when asked for, since torch takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module 'unetdist' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(FACE[name]), name)
