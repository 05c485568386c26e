"""Labels.txt and masks: what a colour means."""

from unetdist.data.labels.palette import Label, Palette

__all__ = ["Label", "Palette"]
