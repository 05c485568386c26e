"""What an examination finds: one line each, with what to do about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]

NAMED = 3
"""Of several problems of a kind, those that are told of; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination."""

    what: str
    """What was looked at, in a word or two."""
    fact: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where nothing is to be done, or the fact says it."""
    level: Level = "ok"
    """`warning`: the run will do, but worse or slower than it might. `problem`: it would fail, or be in vain."""
    group: str = ""
    """Heading under which it stands."""

    def to_mapping(self) -> dict[str, str]:
        """As JSON types."""
        return asdict(self)


def ok(what: str, fact: str) -> Finding:
    """Nothing to be done."""
    return Finding(what=what, fact=fact)


def warning(what: str, fact: str, remedy: str = "") -> Finding:
    """The run will do, but worse or slower than it might."""
    return Finding(what=what, fact=fact, remedy=remedy, level="warning")


def problem(what: str, fact: str, remedy: str = "") -> Finding:
    """The run would fail, or be in vain."""
    return Finding(what=what, fact=fact, remedy=remedy, level="problem")


def by_rank(texts: Sequence[str | None]) -> str:
    """What the ranks say, in the order of ranks: once where all say the same, else `rank 0, 2: ...; rank 1: ...`.

    Ranks that say nothing (None) are left out, and then nobody speaks for all.
    """
    said: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text is not None:
            said.setdefault(text, []).append(rank)
    if len(said) == 1 and None not in texts:
        return next(iter(said))
    return "; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in said.items())


def listed(texts: Sequence[str]) -> str | None:
    """The first of several problems, and how many more there are; None where there is none."""
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return "; ".join([*texts[:NAMED], *more]) or None


def size(num_bytes: float) -> str:
    """Bytes for people: `512 B`, `1.5 MB`, `24.0 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people: `12 ms`, `3.4 s`, `12 min`, `5.2 h`, `3.1 days`."""
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2f} ms"
    for unit, factor, from_s in (("days", 86400, 172800), ("h", 3600, 5400), ("min", 60, 90)):
        if seconds >= from_s:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} s"
