"""Which files are there: folders searched once, whatever links lead where, and names in any spelling."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unetdist.cli.logs import logger


def files_below(root: Path) -> Iterator[str]:
    """Names below `root` with "/", in any order, without hidden files such as macOS's ._x.png.

    A folder that links lead to is searched once, under its own name where it has one below `root`. Links back to
    `root`, or to a folder above it, are left out: all that is behind them is no part of the data.
    """
    seen: set[Path] = set()
    links = [root]
    while links:
        start = links.pop(0)
        real = start.resolve()
        if start != root and (real in seen or root.resolve().is_relative_to(real)):
            logger.warning("%s leads to %s, which is searched once; the link is left out.", start, real)
            continue
        for folder, folders, names in os.walk(start):
            if (here := Path(folder).resolve()) in seen:
                folders.clear()
                continue
            seen.add(here)
            visible = sorted(name for name in folders if not name.startswith("."))
            links += [path for name in visible if (path := Path(folder, name)).is_symlink()]
            folders[:] = [name for name in visible if not Path(folder, name).is_symlink()]
            below = Path(folder).relative_to(root)
            yield from ((below / name).as_posix() for name in names if not name.startswith("."))


def composed(name: str) -> str:
    """The name in Unicode's form NFC: macOS keeps an umlaut as two characters (NFD), which look like one."""
    return unicodedata.normalize("NFC", name)


def spellings(name: str) -> Iterator[str]:
    """A name as a list has it, and as the disk may have it: other Unicode forms, and "/" for Windows' backslash."""
    for slashed in dict.fromkeys((name, name.replace("\\", "/"))):
        yield from dict.fromkeys((slashed, composed(slashed), unicodedata.normalize("NFD", slashed)))


def spelled(root: Path, name: str) -> str | None:
    """The spelling of `name` that is a file below `root` (or an absolute path); None: there is none."""
    return next((each for each in spellings(name) if (root / each).is_file()), None)


def is_readme(name: str) -> bool:
    """Whether a picture belongs to the text that describes the data, not to the data."""
    return PurePosixPath(name).stem.casefold() == "readme"
