"""Labels.txt as a `Palette`: colours, names, the file's own ids, and the indices that the model learns.

A class has three numbers. Its **id** is that of Labels.txt: it may have gaps, and predictions are written with it. Its
**index** 0..C-1 is used in shards and by the model: ascending by id, without ignored labels. Its **colour** is used in
colour masks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from unetdist.cli import json_records
from unetdist.cli.command_line import suggestion
from unetdist.data.labels import label_file
from unetdist.data.labels.label_file import LabelReading, LabelRow
from unetdist.errors import DataError

# Value of pixels that are neither trained nor scored, in masks of class indices and of ids.
IGNORE_INDEX = 255

Value = Annotated[int, range(256)]


@dataclass(frozen=True)
class Label:
    """One line of Labels.txt.

    Attributes:
        id: The file's own number, or the number of lines before it; 0..254, any up to 255 if ignored.
        name: Name in the file.
        color: Red, green, blue, 0..255.
        index: Class 0..C-1 of the model; None if the label is ignored.
    """

    id: Annotated[int, range(-(2**63), 256)]
    name: str
    color: tuple[Value, Value, Value]
    index: Value | None


@dataclass(frozen=True)
class Palette:
    """The labels of a data set in the order of their file.

    Attributes:
        labels: One per line.
        has_ids: Whether the file gives ids; if not, they count the lines from 0.
        path: The file, for messages.
        has_colors: Whether the file gives colours; if not, they are made up, and masks must hold ids.
    """

    labels: tuple[Label, ...]
    has_ids: bool = field(default=True, compare=False)
    path: str = field(default="Labels.txt", compare=False)
    has_colors: bool = field(default=True, compare=False)

    @classmethod
    def read(cls, path: str | PathLike[str], *, ignore: Sequence[str] = ()) -> "Palette":
        """Read a Labels.txt in any of the forms of `unetdist.data.labels.label_file`.

        Args:
            path: The file.
            ignore: Names of labels that are not trained; their pixels become `IGNORE_INDEX`. Ignored labels may
                share a colour or an id, like the void labels of Cityscapes.

        Raises:
            DataError: The file cannot be read; says where (file, line) and how to correct it.
        """
        path = Path(path)
        return _choose(label_file.readings(path), frozenset(ignore), path)

    @property
    def num_classes(self) -> int:
        """Number of trained classes C."""
        return len(self._trained)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each trained class, by index."""
        return tuple(label.name for label in self._trained)

    @cached_property
    def colors(self) -> NDArray[np.uint8]:
        """Colour of each trained class, uint8 (C, 3), by index."""
        return np.array([label.color for label in self._trained], np.uint8).reshape(-1, 3)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Id of each trained class, int64 (C,), by index."""
        return np.array([label.id for label in self._trained], np.int64)

    def to_ids(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """Class indices (any shape, integers 0..255) -> the file's ids, uint8; `IGNORE_INDEX` stays 255."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: self.num_classes] = self.ids
        return np.take(table, mask)

    def colorize(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """Class indices (H, W) -> colours, uint8 (H, W, 3).

        Ignored pixels get the colour of the first ignored label, black if there is none.
        """
        ignored = next((label.color for label in self.labels if label.index is None), (0, 0, 0))
        table = np.full((256, 3), ignored, np.uint8)
        table[: self.num_classes] = self.colors
        return np.take(table, mask, axis=0)

    def to_records(self) -> list[dict[str, Any]]:
        """The labels as plain JSON types."""
        return [
            {"index": label.index, "id": label.id, "name": label.name, "color": list(label.color)}
            for label in self.labels
        ]

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> "Palette":
        """The inverse of `to_records`; raises `DataError` for anything else."""
        try:
            palette = cls(tuple(json_records.build(Label, record) for record in records))
            if [label.index for label in palette._trained] != list(range(palette.num_classes)):
                raise ValueError("indices have gaps")
            ids = palette.ids.tolist()
            if ids != sorted(set(ids)) or not set(ids) <= set(range(IGNORE_INDEX)):
                raise ValueError(f"ids of classes ({ids}) must ascend within 0..254")
        except ValueError as error:
            raise DataError(f"damaged labels ({error}); write the shards or the model again") from None
        return palette

    @cached_property
    def _trained(self) -> list[Label]:
        return sorted((label for label in self.labels if label.index is not None), key=lambda label: label.index or 0)


def _choose(readings: list[LabelReading], ignore: frozenset[str], path: Path) -> Palette:
    """The palette of the one reading that fits, by the rule in `unetdist.data.labels.label_file`."""
    sound: list[tuple[LabelReading, Palette]] = []
    errors: list[DataError] = []
    for reading in sorted(readings, key=lambda reading: -reading.order):
        try:
            sound.append((reading, _palette(reading.rows, ignore, path)))
        except DataError as error:
            errors.append(error)
    if not sound:
        raise errors[0]
    best, palette = sound[0]
    forms = [f"'{reading.form}'" for reading, _ in sound if reading.order == best.order]
    if len(forms) > 1:
        raise DataError(
            f"its numbers can be read as {' and as '.join(forms)}; add the right one of these as the first line",
            source=f"{path}, line {best.rows[0].line}",
        )
    return palette


def _palette(rows: Sequence[LabelRow], ignore: frozenset[str], path: Path) -> Palette:
    """Check all rules of a palette and number the trained classes by ascending id."""
    for unknown in sorted(ignore - {row.name for row in rows}):
        near = suggestion(unknown, [row.name for row in rows])
        raise DataError(f"--ignore '{unknown}' is no label{near}", source=path)
    labels = []
    first: dict[object, tuple[LabelRow, bool]] = {}
    for position, row in enumerate(rows):
        source, is_ignored = f"{path}, line {row.line}", row.name in ignore
        id = position if row.id is None else row.id
        color = row.color or made_up_color(position)
        if any(not 0 <= value <= 255 for value in color):
            raise DataError(f"colour {color} of '{row.name}' must be 0..255; correct the line", source=source)
        # An ignored label may have 255 or a negative number, but no more than a byte holds.
        if id > 255 or (not is_ignored and not 0 <= id <= 254):
            raise DataError(
                f"id {id} of '{row.name}' must be 0..254, because 255 and negative ids mean ignored pixels; "
                + (f"add --ignore '{row.name}' or " if id <= 255 else "")
                + "change the id (without ids, classes are numbered by line)",
                source=source,
            )
        for what, value in (("name", row.name), ("colour", color), ("id", id)):
            other, other_ignored = first.setdefault((what, value), (row, is_ignored))
            if other is not row and not (is_ignored and other_ignored and what != "name"):
                raise DataError(
                    f"'{row.name}' has the {what} {value!r} of '{other.name}' (line {other.line}); "
                    "remove or change one of the two lines",
                    source=source,
                )
        labels.append(Label(id, row.name, color, None))
    trained = sorted(label.id for label in labels if label.name not in ignore)
    if not trained:
        raise DataError("every label is ignored; leave at least one class to train", source=path)
    return Palette(
        tuple(x if x.name in ignore else replace(x, index=trained.index(x.id)) for x in labels),
        has_ids=all(row.id is not None for row in rows),
        path=str(path),
        has_colors=all(row.color is not None for row in rows),
    )


def made_up_color(number: int) -> tuple[int, int, int]:
    """The colour of PASCAL VOC's class `number`, 0..255: black, dark red, dark green ..., all different."""
    color = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            color[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return color[0], color[1], color[2]
