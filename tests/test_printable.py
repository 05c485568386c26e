"""Nothing that a name holds commands the terminal."""

from pathlib import Path

import pytest

from unetdist.printable import one_line, printable, shown


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
