"""Keeps the passwords, tokens and signatures of URLs out of everything that is saved or shown."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_URL = re.compile(r"([a-zA-Z][\w+.-]*://)([^\s\"<>]+)")


# The start of an address without a user: users rarely have a dot in their name.
_HOST_AND_PORT = re.compile(r"(localhost|[\w-]+(\.[\w-]+)+):\d{1,5}(/|$)")


def mask(text: object) -> str:
    """`text`, where `***` stands for the user, query and fragment of each URL in it."""
    return _URL.sub(_masked, str(text))


def public(values: Any) -> Any:
    """JSON types, such as settings, with every text in them masked."""
    if isinstance(values, Mapping):
        return {name: public(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [public(value) for value in values]
    return mask(values) if isinstance(values, str) else values


def is_masked(location: str) -> bool:
    """Whether a part of this URL was hidden by `mask`, so that nothing can be read with it."""
    return re.search(r"://\*\*\*|[?#;]\*\*\*", location) is not None


def _masked(found: re.Match[str]) -> str:
    """A URL, as `_URL` finds it.

    Passwords may hold any of the letters that divide a URL, though they should not. Where it is not certain which
    part one belongs to, both are hidden.
    """
    scheme, rest = found.groups()
    if scheme.lower() == "file://":  # there ? and # are letters of a name
        return scheme + mask(rest)
    end = re.search(r"[)'\]},.:;!]*$", rest)[0]  # type: ignore[index]  # of the sentence around it
    rest = rest.removesuffix(end)
    is_web = scheme.lower() in ("http://", "https://")
    secret = re.search(r"[?#]|;[^/;=]*=" if is_web else r"\?|[#;][^/#;=]*=", rest)
    cut = secret.start() if secret else len(rest)
    at = rest.rfind("@")
    # Otherwise the @ belongs to a path, as in hf://datasets/a/b@main and http://10.0.0.5:8080/u/r@1.0.
    has_colon = ":" in rest[: max(at, 0)] and not _HOST_AND_PORT.match(rest)
    has_user = has_colon or "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]
    if has_user and at > cut:
        return f"{scheme}{HIDDEN}{end}"
    place = f"{HIDDEN}@{rest[at + 1 : cut]}" if has_user else rest[:cut]
    return f"{scheme}{place}{rest[cut] + HIDDEN if secret else ''}{end}"
