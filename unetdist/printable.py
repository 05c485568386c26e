"""Names as they may be shown: an escape sequence in a file's name must not command the terminal."""

import re
from pathlib import PurePath

# Control characters, marks that turn the direction of writing, and half characters of names that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""The text with every character that would command a terminal as `\x1b`; its lines stay."""
    return _UNSAFE.sub(_escaped, str(text))


def one_line(text: object) -> str:
    r"""Like `printable`, with line feeds as `\n` too: for names."""
    return printable(text).replace("\n", "\\n")


def shown(value: object) -> object:
    """A value for a log line: text through `one_line`, anything else unchanged."""
    return one_line(value) if isinstance(value, (str, PurePath, BaseException)) else value


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
