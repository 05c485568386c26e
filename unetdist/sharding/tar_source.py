"""Where tars of others are: a folder, one tar, a brace notation, or a file that lists them."""

import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from unetdist.cli.credentials import mask
from unetdist.cli.logs import logger
from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.tar_index import MemberNames, read_members
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import read_lines
from unetdist.storage.files import open_file
from unetdist.storage.folders import Folder, open_folder
from unetdist.storage.remote import RangesUnsupportedError, is_url

_START = 16 * 2**20
"""Bytes at the beginning of a tar, by whose members masks are guessed."""
_ENOUGH = 100
"""Samples by which masks are guessed."""
_MASK_WORDS = re.compile("mask|seg|label|annot|target|gt|cls|class")
_SECRET = re.compile("[?&;#][^=&;/]*(token|sig|key|secret|passw|pwd|auth|cred|policy|hdn)[^=&;/]*=", re.I)
_LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Tars:
    """Tars of others, and where index and manifest go."""

    source: Folder
    names: tuple[str, ...]
    """In `source`, or URLs and absolute paths."""
    out: Folder
    shard_names: tuple[str, ...]
    """As the manifest names them."""


def find_tars(location: str, out: str | None = None) -> Tars:
    """The tars that a location names.

    Args:
        location: A folder or its URL; a tar; `https://host/train-{000000..000099}.tar`; or a text file that lists
            tars, one a line, relative to the file's own folder.
        out: Where index and manifest go; None: beside the tars.

    Raises:
        DataError: There are none.
        ConfigError: `out` is needed, for the tars lie in several folders.
    """
    source, names = _list(location)
    if not names:
        raise DataError(
            "no .tar files here; give the folder that holds the shards. A web server that does not list its files "
            "needs their names: https://host/train-{000000..000099}.tar, or a text file with a URL a line.",
            source=mask(location),
        )
    folders = {_without_query(source.where(name)).rpartition("/")[0] for name in names}
    if out is not None and {_place(out)} != set(map(_place, folders)):
        absolute = (source.where(name) for name in names)
        shard_names = tuple(_kept(name) if is_url(name) else str(Path(name).resolve()) for name in absolute)
        target = open_folder(out)
        if not target.is_local and not all(map(is_url, shard_names)):
            raise ConfigError(
                f"--out ({mask(out)}) is on another machine, which cannot see the tars in {source}; "
                "give a local --out, or upload the tars and index them there."
            )
        if any("@" in urlsplit(source.where(name)).netloc for name in names if is_url(source.where(name))):
            logger.warning(
                "the manifest does not hold the user and password of the tars; write them into ~/.netrc, from where "
                "they are read."
            )
        return Tars(source, tuple(names), target, shard_names)
    if len(folders) > 1:
        raise ConfigError(
            f"the tars lie in {len(folders)} folders; say where index and manifest go with --out DIR."
        )
    if any("/" in name for name in names):
        folder = folders.pop()
        names = [_without_query(name).rpartition("/")[2] for name in names]
        source = open_folder(folder)
    return Tars(source, tuple(names), source, tuple(names))


def _kept(url: str) -> str:
    """The URL of a tar as a manifest may hold it: without user and password."""
    if _SECRET.search(url):
        raise ConfigError(
            f"{mask(url)} has a token or signature, which a manifest must not hold; index a copy of the tars, or have "
            "them served to a user and password (~/.netrc)."
        )
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


def _place(folder: str) -> str:
    return _without_query(folder).rstrip("/") if is_url(folder) else str(Path(folder).resolve())


def _without_query(location: str) -> str:
    return location.partition("?")[0] if is_url(location) else location


def _list(location: str) -> tuple[Folder, list[str]]:
    if "{" in location:
        import braceexpand

        return open_folder("."), list(braceexpand.braceexpand(location))
    if _without_query(location).endswith(".tar") and not Path(location).is_dir():
        return open_folder("."), [location]
    if not is_url(location) and Path(location).is_file():
        lines = (line.strip() for line in read_lines(Path(location)))
        names = [line for line in lines if line and not line.startswith("#")]
        return open_folder(Path(location).parent), names
    folder = open_folder(location)
    # Not names(): a link that leads nowhere is to be told of.
    local = sorted(path.name for path in folder.path("").glob("*.tar")) if folder.is_local else None
    return folder, folder.names(".tar") if local is None else local


def guess_names(tars: Tars, *, image: str | None = None) -> MemberNames:
    """Which members are the masks, by the beginning of the first tar.

    Raises:
        DataError: There are several candidates, or none; they are listed.
    """
    where = mask(tars.source.where(tars.names[0]))
    try:
        keys = _pictures_by_key(tars)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error}); mend that, or name the masks with --mask-ext.", source=where
        ) from None
    common = set.intersection(*map(set, keys.values())) if keys else set()
    named = [extension for extension in common if _MASK_WORDS.search(extension.lower())]
    exact = [extension for extension in common if not extension.lower().endswith(_LOSSY)]
    if len(named) == 1 and len(common) > 1:
        choice = named[0]
    elif len(common) == 2 and len(exact) == 1:
        choice = exact[0]
    elif len(common) > 1:
        options = ", ".join(f"--mask-ext {extension[1:]}" for extension in sorted(common))
        raise DataError(f"which pictures are the masks? Choose one of {options}.", source=where)
    else:
        found = ", ".join(f"{key}{extension}" for key in list(keys)[:4] for extension in keys[key])
        raise DataError(
            f"no two pictures have a common key (up to the first dot): it begins with {found or 'no pictures'}; "
            'say how masks are named, for example --mask-name "{stem}_mask.png".',
            source=where,
        )
    logger.info(
        "masks are taken to be the members .%s (as in %s); --mask-ext changes that.", choice[1:], where
    )
    return MemberNames("{stem}" + choice, image)


def _pictures_by_key(tars: Tars) -> dict[str, list[str]]:
    """Extensions of the pictures of each whole sample at the beginning of the first tar."""
    source, name = tars.source, tars.names[0]
    if source.is_local and not is_url(name):
        return _scan(source.path(name))
    with tempfile.NamedTemporaryFile(prefix="unetdist-") as file:
        with suppress(RangesUnsupportedError):
            file.write(source.read_range(name, 0, _START))
            file.flush()
        keys = _scan(Path(file.name))
        if len(keys) < 2:
            source.download(name, file, start=file.tell())
            file.flush()
            keys = _scan(Path(file.name))
    return keys


def _scan(path: Path) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    with open_file(path) as file, suppress(DataError):  # of a part, the end is missing
        for member in read_members(file, path):
            stem, _, extension = PurePosixPath(member.name).name.partition(".")
            if f".{extension}".lower().endswith(PICTURE_SUFFIXES):
                keys.setdefault(f"{PurePosixPath(member.name).parent / stem}", []).append(f".{extension}")
            if len(keys) > _ENOUGH:
                break
    if len(keys) > 1:
        keys.popitem()  # may be cut
    return keys
