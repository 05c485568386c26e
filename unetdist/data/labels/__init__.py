"""Labels.txt and masks.

In: a label file in any common form, and masks that hold colours or ids. Out: a `Palette`, masks of class indices, and a
report of every colour that the label file does not list.
"""

from unetdist.data.labels.palette import IGNORE_INDEX, Label, Palette

__all__ = ["IGNORE_INDEX", "Label", "Palette"]
