"""Every value is what its type says, or the error names its place."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetdist.cli.json_records import Count, Hex, build, parse, sealed, unsealed


@dataclass(frozen=True)
class Inner:
    name: Annotated[str, re.compile(r"[^\0]+")]
    count: Count


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    size: tuple[int, int]
    mean: float
    channels: Annotated[int, (1, 3)]
    kind: Literal["a", "b"] | None
    sha256: Hex = ""
    extra: dict[str, Any] | None = None
    is_done: bool = False


GOOD = {"inner": [{"name": "x", "count": 3}], "size": [4, 5], "mean": 2, "channels": 3, "kind": None}


def test_what_fits_becomes_the_dataclass():
    built = build(Outer, GOOD)
    assert built == Outer(inner=(Inner("x", 3),), size=(4, 5), mean=2.0, channels=3, kind=None)
    assert type(built.mean) is float
    assert build(Outer, parse(b'{"inner":[],"size":[0,-1],"mean":1e3,"channels":1,"kind":"b"}')).kind == "b"
    assert build(tuple[Inner, ...], GOOD["inner"]) == built.inner


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": [{"name": "x", "count": "3"}]}, r"inner\[0\]\.count \('3'\) must be an integer"),
        ({"inner": [{"name": "x", "count": -1}]}, r"inner\[0\]\.count \(-1\) must be an integer from 0 to"),
        ({"inner": [{"name": "x", "count": 2**63}]}, r"count \(9223372036854775808\) must be"),
        ({"inner": [{"name": "x", "count": 10**5000}]}, "more than 40 digits"),
        ({"inner": [{"name": "x", "count": 7.5}]}, r"count \(7\.5\) must be an integer"),
        ({"inner": [{"name": "x", "count": True}]}, r"count \(True\) must be an integer"),
        ({"inner": [{"name": "a\0b", "count": 1}]}, r"inner\[0\]\.name \('a\\x00b'\) must be of the form"),
        ({"inner": [{"name": "x"}]}, r"inner\[0\] lacks count"),
        ({"inner": {"0": 1}}, r"inner \(an object of 1\) must be a list"),
        ({"inner": [[]]}, r"inner\[0\] \(a list of 0\) must be an object"),
        ({"size": [1]}, r"size \(a list of 1\) must be a list of 2"),
        ({"mean": float("inf")}, "mean .* must be a finite number"),
        ({"mean": 10**400}, "mean .* must be a finite number"),
        ({"mean": "2"}, "mean .* must be a finite number"),
        ({"channels": 2}, r"channels \(2\) must be one of \(1, 3\)"),
        ({"kind": "c"}, r"kind \('c'\) must be one of 'a', 'b'"),
        ({"sha256": "../x"}, "sha256 .* must be of the form"),
        ({"extra": []}, r"extra \(a list of 0\) must be an object"),
        ({"colour": 1}, "has 'colour', which this version does not know"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(Outer, {**GOOD, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a":' * 10**5, "nested too deeply"),
        (b"NaN", "NaN is not JSON"),
        (b"-Infinity", "is not JSON"),
        (b'{"a": 1, "a": 2}', "same name twice"),
        (b"\xff\xfe\xfd", "codec"),
        (b"1" * 5000, "4300 digits"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_seal_tells_damage():
    values = {"a": [1, 2.5, "é"], "b": None}
    assert unsealed(parse(json.dumps(sealed(values)))) == values
    assert unsealed(values) == values
    with pytest.raises(ValueError, match="its sha256 is .* instead of None"):
        unsealed(values, is_required=True)
    with pytest.raises(ValueError, match="its sha256 is"):
        unsealed({**sealed(values), "b": 1})
    with pytest.raises(ValueError, match="not a JSON object"):
        unsealed([])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*GOOD, "sha256", "extra", "is_done"]), JSON))
def test_anything_is_built_as_it_stands_or_refused(changes):
    values = {**GOOD, **changes}
    try:
        built = asdict(build(Outer, values))
    except ValueError:
        return
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in built.items()}
    assert {**plain, **{name: plain[name] for name in values}} == {**plain, **values}
