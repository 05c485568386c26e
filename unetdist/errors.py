"""The errors that a user is meant to read: each says what is wrong, where, and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

# Control characters, marks that turn the direction of writing, and half characters of names that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UnetdistError(Exception):
    """Base of every error that is the user's to mend; launch scripts print it without a traceback."""


class ConfigError(UnetdistError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(UnetdistError, ValueError):
    """Images, masks, labels or shards that cannot be used.

    `source` names where it was found (file, line, shard, key) and opens the message, always in one line.
    """

    def __init__(self, message: str, *, source: object = None) -> None:
        super().__init__(printable(message if source is None else f"{one_line(source)}: {message}"))
        self.source = source


class SourceError(DataError):
    """The place of the data is at fault, not one of its samples: leaving samples blank would not help."""


class CheckpointError(UnetdistError):
    """Saved weights or state that are missing, damaged or made by another configuration."""


class LaunchError(UnetdistError):
    """`accelerate launch` started something else than what was asked for."""


class TrainingError(UnetdistError):
    """A run that must not continue, such as one whose loss is not finite."""


@contextmanager
def writable(option: str, file: object) -> Iterator[None]:
    """Name the option in the error of an output file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} ({file}) cannot be written ({error.strerror}); give another file.") from None


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
