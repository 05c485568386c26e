"""Grammar of Labels.txt: text in any of the forms found in the wild -> rows of name, colour and id.

A line holds a name and up to seven whole numbers, separated by spaces, tabs, commas, semicolons, colons or brackets.
The meaning of the numbers is decided once for the whole file:

1. A header (`id,name,r,g,b`; it may be in a comment, other columns are skipped) names the columns.
2. Without a header, each of `FORMS` is tried as if it were the header, and stays if it fits every line.
3. Of these, a form stays if the whole file is sound under it (colours 0..255, no colour, name or id twice).
4. Of these, one whose ids count 0, 1, 2 ... or 1, 2, 3 ... wins, then one whose ids only rise (three lines or more). If
   several still fit, the file is ambiguous and is refused, because a guess would train on wrong classes.

A number at the end of a name with spaces (`0 0 0 Lane 1`) belongs to the name if the names repeat without it, or if
there are no colours and not every name has one.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from unetdist.data.decode import refuse_pointer
from unetdist.errors import DataError

# Orders of columns that are known without a header; `a` is a constant alpha, `_` is ignored. Those without colours are
# for masks that hold ids.
FORMS = (
    *("r g b name", "name r g b"),
    *("id r g b name", "r g b id name", "r g b a name", "id name r g b", "r g b name id"),
    *("name id r g b", "name r g b id", "name r g b a"),
    *("id r g b _ name", "id name r g b _", "name id r g b _"),
    "id r g b _ _ _ name",  # ITK-SNAP: opacity, visibility, mesh
    *("id name", "name id", "name"),
)

_REMEDY = "write 'R G B name' with whole numbers 0..255, quote a name that has commas, or put # before a comment"

_INTEGER = re.compile(r"[-+]?\d+")
_COMMENT = re.compile(r"(^|\s)(#|//)(\s.*|$)|^(#|//).*")
# A name in a file without colours: a few words, but no file name, sentence, or line of another format. It may begin
# with a digit, but not with a number of its own (`1st`, not `1 sky`), which is an id.
_NAME = re.compile(
    r"(?!\d+(\s|$)|.*(\.\w{2,5}(\s|$)|\d\.\d|\d \d+$))[^\s#{}\[\]\"<>=]+( [^\s#{}\[\]\"<>=]+){0,4}(?<![.:?!])"
)
_CVAT = re.compile(r"^([^:]+:\s*\d+,\s*\d+,\s*\d+):[^:]*:[^:]*$")
# Separators at numbers besides spaces: `Sky: (128, 127, 126)`, `1. Sky`.
_MARKS = re.compile(r"[,;:(\[]+(?=\s*[-+]?\d)|(?<=\d)([,;:()\[\]]+|\.(?=\s))")

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
    """How well its ids are in order, 0..2; -1 if names have numbers that may be ids."""


class _Line(NamedTuple):
    number: int
    text: str
    parts: list[str]
    """Numbers and words."""
    are_cells: bool
    """Whether words are whole cells between tabs, semicolons or commas."""


def readings(path: Path) -> list[LabelReading]:
    """All ways to read a file, at least one, the most usual first.

    Raises `DataError` with file and line if it is no text, has no classes, or fits no form.
    """
    lines: list[_Line] = []
    header: list[str] | None = None
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1):
        text = _COMMENT.sub("", line).strip()
        is_comment = bool(line.strip()) and not text
        if not lines and not header and (is_comment or text):
            header = read_header(line.strip().lstrip("#/ "), path, number, is_strict=not is_comment)
            text = "" if header else text
        if text:
            lines.append(_Line(number, text, *_split(text, header or [])))
    if not lines:
        raise DataError(f"no classes; {_REMEDY} (lines that begin with # or // are comments)", source=path)
    if header is None:
        return list(_forms(lines)) or _refuse_mixed(lines, path)
    values = [_values(line, header, is_header=True, numbers_in_name=True) for line in lines]
    for line, found in zip(lines, values, strict=True):
        if not found:
            raise DataError(
                f"'{line.text}' does not fit the header '{' '.join(header)}'; give each line these columns with "
                "whole numbers, and quote a name that begins or ends with a number",
                source=f"{path}, line {line.number}",
            )
    return [LabelReading(" ".join(header), _rows(lines, values), 0)]


def read_header(text: str, path: Path, line: int, *, is_strict: bool) -> list[str] | None:
    """Role of each column ("id", "name", "r", "g", "b", "a" or "_"), or None if the line is no header."""
    cells = re.split(r"[\t;,]", text)
    if len(cells) < 4:
        cells = re.findall(r"[^\s,;:()\[\]]+", text)
    words = [re.sub(r"[\s_\-\"]", "", cell).lower() for cell in cells]
    roles = ["name" if w in _NAMES else "id" if w in _IDS else _CHANNELS.get(w, "_") for w in words]
    for index, word in enumerate(words):
        if word in _NAMES_OR_IDS and not {"name", "id"} <= set(roles):
            roles[index] = "name" if "name" not in roles else "id"
    # A file without colours.
    if sorted(roles) == ["id", "name"] and {"id", "ids"} & set(words):
        return roles
    if any(_INTEGER.fullmatch(word) for word in words) or len({"r", "g", "b", "name"} & set(roles)) < 2:
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


def _split(text: str, header: Sequence[str]) -> tuple[list[str], bool]:
    """The parts of a line, and whether they are cells; cells of several numbers are taken apart."""
    text = _CVAT.sub(r"\1", text)
    # Cells first, because a name in a cell of its own may have numbers and spaces at its ends.
    if delimiter := next((delimiter for delimiter in "\t;," if delimiter in text), None):
        cells = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
        numbers = [cell for cell, role in zip(cells, header, strict=False) if role in ("id", "r", "g", "b")]
        has_columns = len(cells) >= len(header) > 0 and not any(cells[len(header) :])
        if has_columns and all(map(_INTEGER.fullmatch, numbers)):
            return cells, True
        parts = []
        for cell in cells:
            words = cell.split()
            parts += words if words and all(map(_INTEGER.fullmatch, words)) else [cell]
        if sum(_INTEGER.fullmatch(part) is not None for part in parts) >= 3:
            return parts, True
    return re.findall(r'"[^"]*"|\S+', _MARKS.sub(" ", text)), False


def _values(line: _Line, roles: Sequence[str], *, is_header: bool, numbers_in_name: bool) -> dict[str, str]:
    """The text of each column; none if the line does not fit. A name takes all words that are left.

    Under a header, columns without a role and names may hold anything.
    """
    # Columns without a header may be set apart by several tabs.
    parts = line.parts if is_header else [part for part in line.parts if part]
    if line.are_cells and not any(parts[len(roles) :]):
        parts = parts[: len(roles)]
    surplus = len(parts) - len(roles)
    if surplus < 0 or (line.are_cells and surplus):
        return {}
    start = roles.index("name")
    end = start + 1 + surplus
    words = parts[start:end]
    edges = [words[0], words[-1]]
    if numbers_in_name:
        # A number next to another column may as well be that of the column.
        edges = [*words[:1] * (start > 0), *words[-1:] * (end < len(parts))] if surplus else []
    name = " ".join(words).strip("\"' \t,;:")
    values = dict(zip(roles, [*parts[:start], name, *parts[end:]], strict=True))
    numbers = [*parts[:start], *parts[end:]]
    if is_header:
        numbers = [values[role] for role in ("id", "r", "g", "b") if role in values]
    if not name or any(map(_INTEGER.fullmatch, edges)) or not all(map(_INTEGER.fullmatch, numbers)):
        return {}
    return values if is_header or "r" in values or _NAME.fullmatch(name) else {}


def _forms(lines: Sequence[_Line]) -> Iterator[LabelReading]:
    """The reading under each form that fits all lines."""
    for form in FORMS:
        values = [_values(line, form.split(), is_header=False, numbers_in_name=False) for line in lines]
        if all(values) and ("a" not in values[0] or {each["a"] for each in values} in ({"255"}, {"0"})):
            rows = _rows(lines, values)
            yield LabelReading(form, rows, _order([row.id for row in rows if row.id is not None]))
    for form in ("r g b name", "name r g b", "name"):
        values = [_values(line, form.split(), is_header=False, numbers_in_name=True) for line in lines]
        names = [each.get("name", "") for each in values]
        bare = [name.strip(" 0123456789") for name in names]
        has_no_ids = len(set(bare)) < len(lines) or (form == "name" and not set(bare).isdisjoint(names))
        if all(bare) and has_no_ids:
            yield LabelReading(form, _rows(lines, values), -1)


def _refuse_mixed(lines: Sequence[_Line], path: Path) -> NoReturn:
    """Raise `DataError` for the first line that fits no form, or another one than most lines."""
    forms = [
        [form for form in FORMS if _values(line, form.split(), is_header=False, numbers_in_name=False)]
        for line in lines
    ]
    counts = Counter(fitting[0] for fitting in forms if fitting)
    usual = max(counts, key=lambda form: ("r" in form.split(), counts[form]), default="")
    for line, fitting in zip(lines, forms, strict=True):
        source = f"{path}, line {line.number}"
        if all(map(_INTEGER.fullmatch, line.parts)):
            raise DataError(
                f"'{line.text}' has no name, only numbers; {_REMEDY}; "
                "names that are numbers need a header such as 'R,G,B,name'",
                source=source,
            )
        if not fitting:
            raise DataError(f"'{line.text}' is not three colour values and a name; {_REMEDY}", source=source)
        if usual not in fitting:
            raise DataError(
                f"'{line.text}' has the form '{fitting[0]}', most lines have '{usual}'; write all lines in one form, "
                "add a header such as 'id,name,r,g,b', or put # before a comment",
                source=source,
            )
    raise AssertionError("the usual form fits all lines")


def _order(ids: Sequence[int]) -> int:
    """2: ids count up from 0 or 1 (or there are none), 1: they rise over three lines or more, 0: neither."""
    counted = [id for id in ids if 0 <= id < 255]
    if counted == list(range(len(counted))) or counted == list(range(1, len(counted) + 1)):
        return 2
    return 1 if len(ids) >= 3 and all(a < b for a, b in pairwise(ids)) else 0


def _rows(lines: Sequence[_Line], values: Sequence[dict[str, str]]) -> tuple[LabelRow, ...]:
    rows = []
    for line, found in zip(lines, values, strict=True):
        color = (int(found["r"]), int(found["g"]), int(found["b"])) if "r" in found else None
        id = int(found["id"]) if "id" in found else None
        rows.append(LabelRow(line.number, " ".join(found["name"].split()), color, id))
    return tuple(rows)
