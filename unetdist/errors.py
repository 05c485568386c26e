"""The errors that a user is meant to read: each says what is wrong, where, and what to do."""

from unetdist.printable import one_line, printable


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
