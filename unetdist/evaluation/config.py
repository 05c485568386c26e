"""The settings of validation."""

from dataclasses import dataclass, field

from unetdist.errors import ConfigError
from unetdist.model.config import InferenceConfig


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the validation set is scored."""

    batch_size: int = 1
    """Images per forward pass and rank. A partial batch is filled up, so that every image meets the same kernels."""

    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """How each image is predicted: whole or in windows, once or as the mean of several views."""

    bootstrap_replicates: int = 1000
    """Replicates of the bootstrap over images behind the 95 % interval of mIoU."""

    boundary: bool = False
    """Also score outlines (boundary IoU, Cheng et al. 2021)."""

    calibration: bool = False
    """Also compare confidence with accuracy (expected calibration error, Guo et al. 2017)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "bootstrap_replicates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"validation.{name} ({getattr(self, name)}) must be at least 1; use the default.")
