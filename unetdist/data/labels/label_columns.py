"""Lines of Labels.txt in columns: the header that names them, and lines cut by it."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from unetdist.errors import DataError

SEPARATORS = r"[\s,;:()\[\]]+"
INTEGER = r"[-+]?\d+"

_NAMES = {"name", "names", "classname", "labelname", "categoryname"}
_NAMES_OR_IDS = {"class", "classes", "label", "labels", "category", "type"}
_IDS = {"id", "ids", "idx", "index", "value", "number", "classid", "labelid", "classindex", "trainid"}
_CHANNELS = {"r": "r", "red": "r", "g": "g", "green": "g", "b": "b", "blue": "b", "a": "a", "alpha": "a"}


def read_header(text: str, path: Path, line: int, *, is_strict: bool) -> list[str] | None:
    """Role of each column ("id", "name", "r", "g", "b", "a" or "_"), or None if the line is no header."""
    cells = next(csv.reader([text], delimiter=delimiter_of(text) or " ", skipinitialspace=True), [])
    if len(cells) < 4:
        cells = [cell for cell in re.split(SEPARATORS, text) if cell]
    words = [re.sub(r"[\s_\-]", "", cell).lower() for cell in cells]
    roles = ["name" if w in _NAMES else "id" if w in _IDS else _CHANNELS.get(w, "_") for w in words]
    for index, word in enumerate(words):
        if word in _NAMES_OR_IDS and not {"name", "id"} <= set(roles):
            roles[index] = "name" if "name" not in roles else "id"
    if sorted(roles) == ["id", "name"] and {"id", "ids"} & set(words):
        return roles  # of a file without colours
    if any(re.fullmatch(INTEGER, word) for word in words) or len({*roles} & {*"rgb", "name"}) < 2:
        return None
    missing = [role for role in ("r", "g", "b", "name") if roles.count(role) != 1]
    if not missing and roles.count("id") < 2:
        return roles
    if is_strict:
        raise DataError(
            f"the header '{text}' must have each of r, g, b, name once and id at most once; "
            "use 'id,name,r,g,b'",
            source=f"{path}, line {line}",
        )
    return None


def cut_cells(text: str, roles: Sequence[str]) -> list[str]:
    """The cells of a line under a header; none if they are too many.

    Between spaces the name takes the cells that are too many, unless these may be a column without one.
    """
    delimiter = delimiter_of(text)
    cells = next(csv.reader([text], delimiter=delimiter or " ", skipinitialspace=True))
    if delimiter and len(cells) >= len(roles):
        return [] if any(cells[len(roles) :]) else cells
    if delimiter:
        cells = [cell for cell in re.split(SEPARATORS, text) if cell]
    start = roles.index("name")
    end = start + 1 + max(0, len(cells) - len(roles))
    name = cells[start:end]
    borders = [*name[:1] * (start > 0), *name[-1:] * (start + 1 < len(roles))]
    if len(name) > 1 and any(re.fullmatch(INTEGER, cell) for cell in borders):
        return []
    return [*cells[:start], " ".join(name), *cells[end:]]


def delimiter_of(text: str) -> str | None:
    """What separates the cells of a line; None for spaces."""
    return next((delimiter for delimiter in "\t;," if delimiter in text), None)
