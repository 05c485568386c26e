"""JSON that may be damaged or forged, read into dataclasses: a field's type says all that its value may be.

`Annotated[int, range(256)]` narrows a number to a range, `Annotated[int, (1, 3, 4)]` to a choice, and
`Annotated[str, re.compile("[0-9a-f]*")]` a text to a pattern.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
Reader = Callable[[Any], Any]

Count = Annotated[int, range(2**63)]
"""How many, how large, or where."""
Hex = Annotated[str, re.compile("[0-9a-f]*")]
"""A hash."""

SEAL = "sha256_of_this"

_WORDS = {
    bool: "true or false",
    int: "an integer of 64 bits",
    float: "a finite number",
    str: "a text",
    NoneType: "null",
}


class _WrongError(ValueError):
    """The value of a field is not what its type says."""

    def inside(self, place: str) -> "_WrongError":
        return _WrongError(f"{place}{self}")


def parse(text: bytes | str) -> Any:
    """The value that JSON writes; `ValueError` for what is none, holds NaN or a name twice, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def build(cls: type[Record], value: object) -> Record:
    """The JSON `value` as a dataclass, or as another type of JSON; `ValueError` names the field that is wrong."""
    try:
        return cast(Record, _reader(cast(Hashable, cls))(value))
    except _WrongError as error:
        raise ValueError(str(error).lstrip(".").strip()) from None
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and a hash of them, by which `unsealed` tells damage."""
    return {**values, SEAL: _hash(values)}


def unsealed(values: Any, *, is_required: bool = False) -> dict[str, Any]:
    """The values without their hash; `ValueError` where they are others, or have none although it is required."""
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    rest = {name: value for name, value in values.items() if name != SEAL}
    if (is_required or SEAL in values) and (found := _hash(rest)) != values.get(SEAL):
        raise ValueError(f"its sha256 is {found} instead of {values.get(SEAL)}")
    return rest


def _hash(values: object) -> str:
    try:
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return values


@cache
def _reader(hint: Any) -> Reader:
    """A function from a JSON value to a value of the type `hint`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin is Annotated:
        return _narrowed(_reader(args[0]), hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)
    if origin in (Union, UnionType):
        return _union_reader([_reader(arg) for arg in args], _words(hint))
    if origin is Literal:
        return lambda value: (
            value if any(type(value) is type(arg) and value == arg for arg in args) else _wrong(value, hint)
        )
    if origin is tuple:
        if args[1:] == (...,):
            return _list_reader(_reader(args[0]), hint)
        return _fixed_list_reader([_reader(arg) for arg in args], hint)
    if origin is dict:
        return _dict_reader(_reader(args[1]), hint)
    return _scalar_reader(hint)


def _scalar_reader(kind: type) -> Reader:
    if kind is float:

        def number(value: Any) -> float:
            if type(value) not in (int, float) or not abs(value) < 2**1023 or not math.isfinite(value):
                _wrong(value, float)
            return float(value)

        return number
    if kind is int:
        return lambda value: value if type(value) is int and -(2**63) <= value < 2**63 else _wrong(value, int)
    if kind not in _WORDS:
        raise TypeError(f"{kind} is no type of JSON")
    return lambda value: value if type(value) is kind else _wrong(value, kind)


def _narrowed(read: Reader, hint: Any) -> Reader:
    rule = hint.__metadata__[0]
    is_allowed = rule.fullmatch if isinstance(rule, re.Pattern) else rule.__contains__

    def narrowed(value: Any) -> Any:
        return found if is_allowed(found := read(value)) else _wrong(value, hint)

    return narrowed


def _dataclass_reader(cls: Any) -> Reader:
    hints = get_type_hints(cls, include_extras=True)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(cls)}
    needed = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            _wrong(value, dict)
        if missing := needed - value.keys():
            raise _WrongError(f" lacks {', '.join(sorted(missing))}")
        if unknown := value.keys() - readers.keys():
            names = _short(", ".join(sorted(unknown)))
            raise _WrongError(f" has {names}, of which this version knows nothing")
        return cls(**{name: _at(f".{name}", readers[name], item) for name, item in value.items()})

    return read


def _union_reader(readers: list[Reader], words: str) -> Reader:
    def read(value: Any) -> Any:
        problems = []
        for reader in readers:
            try:
                return reader(value)
            except _WrongError as error:
                problems.append(error)
        # A list or an object can only have meant one of the types: what is wrong inside it says more.
        inner = [error for error in problems if not str(error).startswith(" (")]
        raise inner[0] if inner else _WrongError(f" ({_short(value)}) must be {words}")

    return read


def _list_reader(read: Reader, hint: Any) -> Reader:
    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _wrong(value, hint)
        return tuple(_at(f"[{place}]", read, item) for place, item in enumerate(value))

    return read_all


def _fixed_list_reader(readers: list[Reader], hint: Any) -> Reader:
    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(readers):
            _wrong(value, hint)
        return tuple(
            _at(f"[{place}]", read, item)
            for place, (read, item) in enumerate(zip(readers, value, strict=True))
        )

    return read_all


def _dict_reader(read: Reader, hint: Any) -> Reader:
    def read_all(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _wrong(value, hint)
        return {name: _at(f".{_short(name)}", read, item) for name, item in value.items()}

    return read_all


def _at(place: str, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except _WrongError as error:
        raise error.inside(place) from None


def _wrong(value: Any, hint: Any) -> Any:
    raise _WrongError(f" ({_short(value)}) must be {_words(hint)}")


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
    if origin in (Union, UnionType):
        return " or ".join(map(_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return "a list" if args[1:] == (...,) else f"a list of {len(args)}"
    return _WORDS.get(hint, "an object")
