import pickle
from pathlib import Path

import pytest

from unetdist import errors
from unetdist.errors import one_line, printable, shown


def test_a_data_error_opens_with_its_source_and_survives_pickling():
    error = errors.DataError("mask is missing; export it", source="a/b.jpg")
    assert str(error) == "a/b.jpg: mask is missing; export it"
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert str(errors.DataError("no source")) == "no source"
    assert str(errors.DataError("one\ntwo", source="a\nb")) == "a\\nb: one\ntwo"


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError])
def test_bad_values_are_value_errors_too(kind):
    assert issubclass(kind, ValueError)
    assert issubclass(kind, errors.UnetdistError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb\x07.png", r"a\x1b[31mb\x07.png"),
        ("a\rb\x08\x7f\x9b2J", r"a\rb\x08\x7f\x9b2J"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\udce9"),
        ("Stra\u00dfe \u9053\t1", "Stra\u00dfe \u9053\t1"),
        ("[red]x[/red] :smile:", "[red]x[/red] :smile:"),
    ],
)
def test_only_what_commands_a_terminal_is_escaped(text, expected):
    assert printable(text) == expected


def test_lines_stay_in_texts_and_not_in_names():
    assert printable("a\nb") == "a\nb"
    assert one_line("a\nb") == r"a\nb"
    assert [shown(value) for value in ("a\n", Path("b\n"), ValueError("c\n"), 3, None)] == [
        r"a\n",
        r"b\n",
        r"c\n",
        3,
        None,
    ]
