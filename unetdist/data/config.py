"""The settings of data loading and of augmentation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from unetdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the section `data`."""

    train: str
    """Folder of the training shards: a path, or a URL such as s3://bucket/train, gs://, hf://, https://."""
    val: str | None = None
    """Folder of the validation shards, likewise; None: no validation."""
    num_workers: int = 2
    """Processes per rank that read, decode and augment; 0: the training process does it."""
    prefetch: int = 4
    """Micro-batches that each worker prepares ahead."""
    lanes: int = 64
    """Parts of an epoch that are read side by side; fixed for the life of a run, best a multiple of the number of
    processes."""
    window: int = 4096
    """Samples of a lane that are shuffled together; data sets up to this size are shuffled as a whole."""
    on_bad_sample: Literal["raise", "blank"] = "raise"
    """Treatment of a training sample that cannot be used: stop, or replace it by a blank, ignored image."""
    max_bad_samples: int = 100
    """Blank samples per process and start after which the run stops all the same."""
    cache_dir: str = "~/.cache/unetdist/shards"
    """Folder for copies of remote shards, on a disk of this machine; any number of runs may share it."""
    cache_gb: float = 100.0
    """Size of the cache in GB, shared by all runs; the least recently used shards are evicted. 0: no cache, each
    sample is a request."""
    retry_s: float = 300.0
    """Seconds for which a server that does not answer is tried again."""
    RETIRED: ClassVar = {"allow_pipe": False}
    """Settings of older versions, and the values that change nothing."""

    def __post_init__(self) -> None:
        minima = {"num_workers": (0, 2), "prefetch": (1, 4), "lanes": (1, 64), "window": (1, 4096)}
        minima |= {"max_bad_samples": (0, 100), "cache_gb": (0, 100), "retry_s": (0, 300)}
        for name, (least, advice) in minima.items():
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} ({getattr(self, name)}) must be {least} or more; use {advice}.")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Section `augment`: each option is one number; 0 (or a scale of 1) switches it off."""

    crop_size: tuple[int, int] | None = None
    """(height, width) in pixels of the training crops; None: whole images, which must then all have one size."""
    scale_min: float = 1.0
    """Smallest random scale, over 0; scales are log-uniform between scale_min and scale_max."""
    scale_max: float = 1.0
    """Largest random scale; 2 shows objects at twice their size."""
    flip_horizontal: float = 0.0
    """Probability of swapping left and right."""
    flip_vertical: float = 0.0
    """Probability of swapping top and bottom."""
    quarter_turns: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, equally likely; 0.75: all four directions equally likely."""
    rare_class_crop: float = 0.0
    """Probability of placing the crop at a class drawn from those in the mask, weighted by the inverse of the class's
    pixels in the data set."""
    brightness: float = 0.0
    """Strength 0..1: colours are multiplied by 1 - strength .. 1 + strength."""
    contrast: float = 0.0
    """Strength 0..1: like brightness, but relative to the mean grey of the data set."""
    saturation: float = 0.0
    """Strength 0..1: like brightness, but relative to the grey of each pixel; no effect on grey images."""
    hue: float = 0.0
    """Largest change of hue either way, in turns of the colour circle, 0..0.5; no effect on grey images."""
    cutmix: float = 0.0
    """Probability of pasting a rectangle of another sample, image and mask, over this one; its part of the area is
    uniform in 0..1."""
    classmix: float = 0.0
    """Probability of pasting a random half of the classes of another sample over this one."""
    native_epochs: int = 0
    """Epochs at the end of the run without scaling and mixing, so that objects get the size at which they are scored
    (Touvron et al. 2019, arXiv 1906.06423); crops, flips and colours continue."""

    def __post_init__(self) -> None:
        if self.crop_size is not None and min(self.crop_size) < 1:
            raise ConfigError(
                f"augment.crop_size ({list(self.crop_size)}) must be a height and a width over 0; use [256, 256]."
            )
        probabilities = ("flip_horizontal", "flip_vertical", "quarter_turns", "rare_class_crop", "cutmix", "classmix")
        largest = dict.fromkeys((*probabilities, "brightness", "contrast", "saturation"), 1.0) | {"hue": 0.5}
        for name, most in largest.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"augment.{name} ({getattr(self, name)}) must be from 0 to {most:g}; use 0.1.")
        if self.cutmix + self.classmix > 1:
            raise ConfigError(
                f"augment.cutmix ({self.cutmix}) and augment.classmix ({self.classmix}) must add up to at most 1, "
                "because a sample gets only one of them; use 0.5 and 0.5."
            )
        if self.native_epochs < 0:
            raise ConfigError(f"augment.native_epochs ({self.native_epochs}) must be at least 0; use 0 for none.")
        if not 0 < self.scale_min <= self.scale_max < float("inf"):
            raise ConfigError(
                f"augment.scale_min ({self.scale_min}) must be over 0 and at most augment.scale_max "
                f"({self.scale_max}); use 0.5 and 2."
            )
        # These change the size of what is trained on, which only a crop makes equal again.
        off = {"quarter_turns": 0, "rare_class_crop": 0, "scale_min": 1, "scale_max": 1}
        for name, value in off.items():
            if self.crop_size is None and getattr(self, name) != value:
                raise ConfigError(
                    f"augment.{name} ({getattr(self, name)}) must be {value} without augment.crop_size; "
                    "set augment.crop_size, such as [256, 256]."
                )
