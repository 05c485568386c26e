"""Reads JSON that may be damaged or forged into dataclasses, whose field types say everything that is allowed.

`Annotated[int, range(256)]` narrows a number to a range, `Annotated[int, (1, 3, 4)]` to a choice, and
`Annotated[str, re.compile("[0-9a-f]*")]` a text to a pattern.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

# Number, size or offset.
Count = Annotated[int, range(2**63)]
# A hash.
Hex = Annotated[str, re.compile("[0-9a-f]*")]

SEAL = "sha256_of_this"

_WORDS = {bool: "true or false", int: "an integer of 64 bits", float: "a finite number", str: "a text"}


def parse(text: bytes | str) -> Any:
    """The value of a JSON text; `ValueError` if it is not JSON, has NaN or a name twice, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def build(cls: type[Record], value: object) -> Record:
    """The JSON `value` as a dataclass or another type of JSON; a `ValueError` names the field that is wrong."""
    try:
        return cast(Record, _read(cls, value, ""))
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a hash of them, by which `unsealed` finds damage."""
    return {**values, SEAL: _hash(values)}


def unsealed(values: Any, *, is_required: bool = False) -> dict[str, Any]:
    """The values without their hash; `ValueError` if it does not match, or is required and missing."""
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    rest = {name: value for name, value in values.items() if name != SEAL}
    if (is_required or SEAL in values) and (found := _hash(rest)) != values.get(SEAL):
        raise ValueError(f"its sha256 is {found} instead of {values.get(SEAL)}")
    return rest


def _hash(values: object) -> str:
    try:
        # Sorted, so that other programs may write the names in another order.
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has the same name twice")
    return values


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _read(hint: Any, value: Any, place: str) -> Any:
    """The JSON value at `place` as a value of the type `hint`."""
    # The most frequent types come first: a manifest may have a million numbers.
    if hint is str:
        return value if type(value) is str else _refuse(place, value, hint)
    if hint is int:
        return value if type(value) is int and -(2**63) <= value < 2**63 else _refuse(place, value, hint)
    origin, args = _parts(hint)
    if origin is Annotated:
        found, rule = _read(args[0], value, place), args[1]
        is_allowed = found in rule if type(rule) is not re.Pattern else rule.fullmatch(found)
        return found if is_allowed else _refuse(place, value, hint)
    if hint is float:
        # NaN and infinity are not smaller.
        is_number = type(value) in (int, float) and abs(value) < 2**1023
        return float(value) if is_number else _refuse(place, value, hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, value, place)
    if origin in (Union, UnionType):
        return None if value is None else _read(args[0], value, place)  # X | None: other unions are not used
    if origin is Literal:
        is_allowed = any(type(value) is type(arg) and value == arg for arg in args)
        return value if is_allowed else _refuse(place, value, hint)
    if origin is tuple:
        is_any_length = args[1:] == (...,)
        if not isinstance(value, list) or not (is_any_length or len(value) == len(args)):
            _refuse(place, value, hint)
        hints = args[:1] * len(value) if is_any_length else args
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(_read(inner, item, f"{place}[{at}]") for at, (inner, item) in pairs)
    if origin is dict:
        if not isinstance(value, dict):
            _refuse(place, value, hint)
        return {name: _read(args[1], item, f"{place}.{_short(name)}") for name, item in value.items()}
    return value if type(value) is hint else _refuse(place, value, hint)


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of each field of a dataclass, and the names of those without a default."""
    hints = get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(cls)
    missing = dataclasses.MISSING
    needed = {field.name for field in fields if field.default is field.default_factory is missing}
    return {field.name: hints[field.name] for field in fields}, frozenset(needed)


def _read_dataclass(cls: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        _refuse(place, value, dict)
    hints, needed = _fields(cls)
    if missing := needed - value.keys():
        raise _wrong(place, f"lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - hints.keys():
        raise _wrong(place, f"has {_short(', '.join(sorted(unknown)))}, which this version does not know")
    return cls(**{name: _read(hints[name], item, f"{place}.{name}") for name, item in value.items()})


def _refuse(place: str, value: Any, hint: Any) -> Any:
    raise _wrong(place, f"({_short(value)}) must be {_words(hint)}")


def _wrong(place: str, problem: str) -> ValueError:
    return ValueError(f"{place.lstrip('.')} {problem}".strip())


def _short(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**40:  # Python refuses to write thousands of digits
        return "a number of more than 40 digits"
    return repr(value[:40] if isinstance(value, str) else value)


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rule = hint.__metadata__[0]
        if isinstance(rule, range):
            return f"an integer from {rule.start} to {rule.stop - 1}"
        return f"of the form {rule.pattern}" if isinstance(rule, re.Pattern) else f"one of {rule}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return "a list" if args[1:] == (...,) else f"a list of {len(args)}"
    return _WORDS.get(hint, "an object")
