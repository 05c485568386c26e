"""Grammar of Labels.txt: text in any of the forms found in the wild -> rows of name, colour and id.

A line holds a name and three to five whole numbers around it, separated by spaces, tabs, commas, semicolons, colons or
brackets. The meaning of the numbers is decided once for the whole file:

1. A header (`id,name,r,g,b`; it may be in a comment, other columns are skipped) names the columns.
2. Without a header, the count of numbers before and after the name leaves those forms of `FORMS` that fit.
3. Of these, a form stays if the whole file is sound under it (colours 0..255, no colour, name or id twice).
4. Of these, one whose ids count 0, 1, 2 ... or 1, 2, 3 ... wins, then one whose ids only rise (three lines or more). If
   several still fit, the file is ambiguous and is refused, because a guess would train on wrong classes.

A file without colours, for masks that hold ids, has an id before or after each name, or only names. A number at the end
of a name with spaces (`0 0 0 Lane 1`) belongs to the name if the names repeat without it.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from unetdist.data.decode import refuse_pointer
from unetdist.errors import DataError

# Orders of columns that are known without a header; `a` is a constant alpha, `_` is ignored.
FORMS = (
    *("r g b name", "name r g b"),
    *("id r g b name", "r g b id name", "r g b a name", "id name r g b", "r g b name id"),
    *("name id r g b", "name r g b id", "name r g b a"),
    *("id r g b a name", "id name r g b a", "name id r g b a"),
    "id r g b _ _ _ name",  # ITK-SNAP: opacity, visibility, mesh
)

REMEDY = "write 'R G B name' with whole numbers 0..255, or put # before a comment"

_SEPARATORS = r"[\s,;:()\[\]]+"
_INTEGER = r"[-+]?\d+"
_COMMENT = re.compile(r"(^|\s)(#|//)(\s.*|$)|^(#|//).*")
# A name in a file without colours: a few words, but no file name, sentence, or line of another format.
_NAME = re.compile(r"(?!.*(\.\w{2,5}(\s|$)|\d\.\d))[^\s#{}\[\]\"<>=]+( [^\s#{}\[\]\"<>=]+){0,4}(?<![.:?!])")
_CVAT = re.compile(r"^([^:]+:\s*\d+,\s*\d+,\s*\d+):[^:]*:[^:]*$")

_NAMES = {"name", "names", "classname", "labelname", "categoryname"}
_NAMES_OR_IDS = {"class", "classes", "label", "labels", "category", "type"}
_IDS = {"id", "ids", "idx", "index", "value", "number", "classid", "labelid", "classindex", "trainid"}
_CHANNELS = {"r": "r", "red": "r", "g": "g", "green": "g", "b": "b", "blue": "b", "a": "a", "alpha": "a"}


@dataclass(frozen=True)
class LabelRow:
    """One class of the file; color and id are None if the file has none, and lines count from 1."""

    line: int
    name: str
    color: tuple[int, int, int] | None
    id: int | None


@dataclass(frozen=True)
class LabelReading:
    """The rows of a file under one order of columns."""

    form: str
    rows: tuple[LabelRow, ...]
    order: int
    """How well its ids are in order, 0..2."""


class _Fields(NamedTuple):
    line: int
    text: str
    before: tuple[str, ...]
    name: str
    after: tuple[str, ...]
    is_name_sure: bool
    """Whether the name is set apart from the numbers by a comma or the like, not only by spaces."""


def readings(path: Path) -> list[LabelReading]:
    """All ways to read a file, at least one, the most usual first.

    Raises `DataError` with file and line if it is no text, has no classes, or fits no form.
    """
    content: list[tuple[int, str]] = []
    header: list[str] | None = None
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1):
        text = _COMMENT.sub("", line).strip()
        is_comment = bool(line.strip()) and not text
        if not content and not header and (is_comment or text):
            header = read_header(line.strip().lstrip("#/ "), path, number, is_strict=not is_comment)
            text = "" if header else text
        if text:
            content.append((number, text))
    if not content:
        raise DataError(f"no classes; {REMEDY} (lines that begin with # or // are comments)", source=path)
    if header:
        return [_with_header(content, header, path)]
    return _without_header(content, path)


def read_header(text: str, path: Path, line: int, *, is_strict: bool) -> list[str] | None:
    """Role of each column ("id", "name", "r", "g", "b", "a" or "_"), or None if the line is no header."""
    cells = next(csv.reader([text], delimiter=delimiter_of(text) or " ", skipinitialspace=True), [])
    if len(cells) < 4:
        cells = [cell for cell in re.split(_SEPARATORS, text) if cell]
    words = [re.sub(r"[\s_\-]", "", cell).lower() for cell in cells]
    roles = ["name" if w in _NAMES else "id" if w in _IDS else _CHANNELS.get(w, "_") for w in words]
    for index, word in enumerate(words):
        if word in _NAMES_OR_IDS and not {"name", "id"} <= set(roles):
            roles[index] = "name" if "name" not in roles else "id"
    # A file without colours.
    if sorted(roles) == ["id", "name"] and {"id", "ids"} & set(words):
        return roles
    if any(re.fullmatch(_INTEGER, word) for word in words) or len({*roles} & {*"rgb", "name"}) < 2:
        return None
    missing = [role for role in ("r", "g", "b", "name") if roles.count(role) != 1]
    if not missing and roles.count("id") < 2:
        return roles
    if is_strict:
        raise DataError(
            f"the header '{text}' must have each of r, g, b, name once and id at most once; use 'id,name,r,g,b'",
            source=f"{path}, line {line}",
        )
    return None


def cut_cells(text: str, roles: Sequence[str]) -> list[str]:
    """The cells of a line under a header; none if they are too many.

    Between spaces, the name takes surplus cells, unless these may be a column without a header.
    """
    delimiter = delimiter_of(text)
    cells = next(csv.reader([text], delimiter=delimiter or " ", skipinitialspace=True))
    if delimiter and len(cells) >= len(roles):
        return [] if any(cells[len(roles) :]) else cells
    if delimiter:
        cells = [cell for cell in re.split(_SEPARATORS, text) if cell]
    start = roles.index("name")
    end = start + 1 + max(0, len(cells) - len(roles))
    name = cells[start:end]
    borders = [*name[:1] * (start > 0), *name[-1:] * (start + 1 < len(roles))]
    if len(name) > 1 and any(re.fullmatch(_INTEGER, cell) for cell in borders):
        return []
    return [*cells[:start], " ".join(name), *cells[end:]]


def delimiter_of(text: str) -> str | None:
    """The delimiter between the cells of a line; None for spaces."""
    return next((delimiter for delimiter in "\t;," if delimiter in text), None)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{error.strerror}; give --labels the path of a Labels.txt", source=path) from None
    refuse_pointer(data, f"{path}: the label file")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise DataError("is not a text file; give --labels the path of a Labels.txt", source=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _with_header(content: list[tuple[int, str]], roles: list[str], path: Path) -> LabelReading:
    """The reading of lines cut into the header's columns."""
    rows = []
    for line, text in content:
        values = {role: cell.strip() for role, cell in zip(roles, cut_cells(text, roles), strict=False)}
        numbers = [values.get(role, "") for role in roles if role in ("r", "g", "b", "id")]
        if not values.get("name") or not all(re.fullmatch(_INTEGER, number) for number in numbers):
            raise DataError(
                f"'{text}' does not fit the header '{' '.join(roles)}'; give each line these columns with "
                "whole numbers, and quote a name that begins or ends with a number",
                source=f"{path}, line {line}",
            )
        rows.append(_row(line, values))
    return LabelReading(" ".join(roles), tuple(rows), 0)


def _without_header(content: list[tuple[int, str]], path: Path) -> list[LabelReading]:
    fields = [_split(line, text) for line, text in content]
    if (uncolored := _without_colors(fields)) is not None:
        return [uncolored]
    fields = _numbers_of_names(fields)
    shapes = Counter((len(row.before), len(row.after)) for row in fields)
    usual = max(shapes, key=lambda shape: (_forms(shape) != [], shapes[shape]))
    for row in fields:
        if not row.name:
            raise DataError(
                f"'{row.text}' has no name, only numbers; {REMEDY}; "
                "names that are numbers need a header such as 'R,G,B,name'",
                source=f"{path}, line {row.line}",
            )
        if not (forms := _forms((len(row.before), len(row.after)))):
            raise DataError(
                f"'{row.text}' is not three colour values and a name; {REMEDY}", source=f"{path}, line {row.line}"
            )
        if (len(row.before), len(row.after)) != usual:
            raise DataError(
                f"'{row.text}' has the form '{forms[0]}', most lines have '{_forms(usual)[0]}'; "
                "write all lines in one form, or add a header such as 'id,name,r,g,b'",
                source=f"{path}, line {row.line}",
            )
    return list(_sound_readings(fields, _forms(usual)))


def _without_colors(fields: list[_Fields]) -> LabelReading | None:
    """The reading of a file of names with or without ids; None if any line may be something else."""
    if not all(row.name and _NAME.fullmatch(row.name) and len(row.before) + len(row.after) <= 1 for row in fields):
        return None
    shapes = {(len(row.before), len(row.after)) for row in fields}
    names = [row.name for row in fields]
    ids: list[int | None] = [None] * len(fields)
    if shapes == {(1, 0)}:
        form, ids = "id name", [int(row.before[0]) for row in fields]
    elif shapes == {(0, 1)} and len(set(names)) == len(names):
        form, ids = "name id", [int(row.after[0]) for row in fields]
    elif any(row.before for row in fields):
        return None
    else:
        form, names = "name", [" ".join((row.name, *row.after)) for row in fields]
    rows = (LabelRow(row.line, name, None, id) for row, name, id in zip(fields, names, ids, strict=True))
    return LabelReading(form, tuple(rows), 0)


def _sound_readings(fields: list[_Fields], forms: list[str]) -> Iterator[LabelReading]:
    """The reading under each form, except those whose alpha column cannot be alpha."""
    for form in forms:
        roles = form.replace("name ", "").replace(" name", "").split()
        columns = [dict(zip(roles, (*row.before, *row.after), strict=True)) for row in fields]
        if "a" in roles and {row["a"] for row in columns} not in ({"255"}, {"0"}) and len(forms) > 1:
            continue
        rows = tuple(_row(row.line, values | {"name": row.name}) for row, values in zip(fields, columns, strict=True))
        yield LabelReading(form, rows, _order([row.id for row in rows if row.id is not None]))


def _forms(shape: tuple[int, int]) -> list[str]:
    """The forms with that many numbers before and after the name."""
    split = {form: form.split() for form in FORMS}
    return [
        f for f, roles in split.items() if (i := roles.index("name")) == shape[0] and len(roles) - 1 - i == shape[1]
    ]


def _order(ids: Sequence[int]) -> int:
    """2: ids count up from 0 or 1 (or there are none), 1: they rise over three lines or more, 0: neither."""
    counted = [id for id in ids if 0 <= id < 255]
    if counted == list(range(len(counted))) or counted == list(range(1, len(counted) + 1)):
        return 2
    return 1 if len(ids) >= 3 and all(a < b for a, b in pairwise(ids)) else 0


def _row(line: int, values: dict[str, str]) -> LabelRow:
    color = (int(values["r"]), int(values["g"]), int(values["b"])) if "r" in values else None
    return LabelRow(line, " ".join(values["name"].split()), color, int(values["id"]) if "id" in values else None)


def _split(line: int, text: str) -> _Fields:
    """Numbers before the name, name, numbers after; an empty name if there are only numbers."""
    bare = _CVAT.sub(r"\1", text)
    if (delimiter := delimiter_of(bare)) and (fields := _split_cells(line, bare, delimiter)):
        return fields
    match = re.fullmatch(
        rf"[\s(\[]*(?P<before>(?:{_INTEGER}[.)]?(?:{_SEPARATORS}|$))*)(?P<name>.*?)"
        rf"(?P<after>(?:{_SEPARATORS}{_INTEGER})*)[\s,;:)\]]*",
        bare,
    )
    # Every part may be empty, and the name takes what is left.
    assert match is not None, bare
    before, after = (tuple(re.findall(_INTEGER, match[part])) for part in ("before", "after"))
    return _Fields(line, text, before, match["name"].strip("\"' \t,;:"), after, is_name_sure=False)


def _split_cells(line: int, text: str, delimiter: str) -> _Fields | None:
    """The fields if each cell is either numbers or part of the name, and the name is in one place; None if not."""
    cells = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
    numbers = [re.fullmatch(rf"[\s(\[]*{_INTEGER}({_SEPARATORS}{_INTEGER})*[\s)\]]*", cell) for cell in cells]
    words = [i for i, cell in enumerate(cells) if cell and not numbers[i]]
    if not words or words[-1] - words[0] != len(words) - 1:
        return None
    before, after = (
        tuple(re.findall(_INTEGER, " ".join(part))) for part in (cells[: words[0]], cells[words[-1] + 1 :])
    )
    if len(before) + len(after) < 3:
        return None
    name = f"{delimiter} ".join(cells[i] for i in words).strip("\"' :")
    return _Fields(line, text, before, name, after, is_name_sure=True)


def _numbers_of_names(fields: list[_Fields]) -> list[_Fields]:
    """Return the `1` of `Lane 1` to the name, if three numbers are the colour and the names repeat without it."""
    if len({row.name for row in fields}) == len(fields) or any(row.is_name_sure for row in fields):
        return fields
    if all(len(row.before) == 3 for row in fields):
        return [row._replace(name=" ".join((row.name, *row.after)), after=()) for row in fields]
    if all(len(row.after) == 3 for row in fields):
        return [row._replace(name=" ".join((*row.before, row.name)), before=()) for row in fields]
    return fields
