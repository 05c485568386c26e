"""The section `augment`: what is done to the training pictures at random."""

from dataclasses import dataclass

from unetdist.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Settings of the section `augment`; each option is one number, 0 (or scale 1) switches it off."""

    crop_size: tuple[int, int] | None = None
    """(height, width) in pixels of what is trained on; None: whole images, which then must be of one size."""
    scale_min: float = 1.0
    """Smallest random scale, over 0; scales are log-uniform between scale_min and scale_max."""
    scale_max: float = 1.0
    """Largest random scale; 2 shows things at twice their size."""
    flip_horizontal: float = 0.0
    """Probability of exchanging left and right."""
    flip_vertical: float = 0.0
    """Probability of exchanging top and bottom."""
    quarter_turns: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, equally likely; 0.75: all four equally likely."""
    rare_class_crop: float = 0.0
    """Probability of placing the crop at a class drawn among those in the mask, rare classes preferred: the
    weights are the inverse of the classes' pixels in the data set."""
    brightness: float = 0.0
    """Strength 0..1: colours are multiplied by 1 - strength .. 1 + strength."""
    contrast: float = 0.0
    """Strength 0..1: as brightness, about the mean grey of the data set."""
    saturation: float = 0.0
    """Strength 0..1: as brightness, about the grey of each pixel; nothing on grey images."""
    hue: float = 0.0
    """Largest change of hue either way, in turns of the colour circle, 0..0.5; nothing on grey images."""
    cutmix: float = 0.0
    """Probability of laying a rectangle of another sample, image and mask, over this one; its share of the area is
    equally likely anywhere from 0 to 1."""
    classmix: float = 0.0
    """Probability of laying half of the classes of another sample, drawn, over this one."""
    native_epochs: int = 0
    """Epochs at the end of the run in which nothing is scaled or mixed, so that things come to have the size in which
    they are scored (Touvron et al. 2019, arXiv 1906.06423); crops, flips and colours go on."""

    def __post_init__(self) -> None:
        if self.crop_size is not None and min(self.crop_size) < 1:
            raise ConfigError(
                f"augment.crop_size ({list(self.crop_size)}) must be a height and a width over 0; "
                "use [256, 256]."
            )
        for name in (
            "flip_horizontal",
            "flip_vertical",
            "quarter_turns",
            "rare_class_crop",
            "cutmix",
            "classmix",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"augment.{name} ({getattr(self, name)}) must be a probability from 0 to 1; use 0.5."
                )
        if self.cutmix + self.classmix > 1:
            raise ConfigError(
                f"augment.cutmix ({self.cutmix}) and augment.classmix ({self.classmix}) must add up to at most 1, for "
                "a sample gets one of them; use 0.5 and 0.5."
            )
        if self.native_epochs < 0:
            raise ConfigError(
                f"augment.native_epochs ({self.native_epochs}) must be at least 0; use 0 for none."
            )
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(
                    f"augment.{name} ({getattr(self, name)}) must be a strength from 0 to {most:g}; use 0.1."
                )
        if not 0 < self.scale_min <= self.scale_max < float("inf"):
            raise ConfigError(
                f"augment.scale_min ({self.scale_min}) must be over 0 and at most augment.scale_max "
                f"({self.scale_max}); use 0.5 and 2."
            )
        if self.crop_size is None:
            for name in ("quarter_turns", "rare_class_crop"):
                if getattr(self, name) > 0:
                    raise ConfigError(
                        f"augment.{name} ({getattr(self, name)}) must be 0 without augment.crop_size; "
                        "set augment.crop_size, such as [256, 256]."
                    )
            if self.scale_min != 1 or self.scale_max != 1:
                raise ConfigError(
                    f"augment.scale_min ({self.scale_min}) and augment.scale_max ({self.scale_max}) must be "
                    "1 without augment.crop_size; set augment.crop_size, such as [256, 256]."
                )
