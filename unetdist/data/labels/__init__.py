"""Labels.txt and masks: what a colour means."""

from unetdist.data.labels.palette import IGNORE_INDEX, Label, Palette

__all__ = ["IGNORE_INDEX", "Label", "Palette"]
