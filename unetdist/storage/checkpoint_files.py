"""Numbered pairs of files that exist whole or not at all, on any disk or store: the protocol of checkpoints.

`step_00000042.safetensors` is put in place first, then `step_00000042.json`, the commit, which holds its size and
hash: without the commit the pair does not exist. Each file appears at once, by rename or as one object of a store, so
whenever the process dies, each pair that exists is whole; what else may damage one, the hashes tell.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from unetdist.cli import json_records
from unetdist.cli.json_records import Count, Hex
from unetdist.cli.logs import logger
from unetdist.errors import CheckpointError, UnetdistError
from unetdist.storage.files import TEMPORARY_SUFFIX
from unetdist.storage.folders import Folder

POINTER = "latest"
"""Names the newest pair to people, and to us where the listing of a store lags behind."""

TENSORS = ".safetensors"
COMMIT = ".json"


class DamagedError(CheckpointError):
    """A file that is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What makes a pair exist: what the tensors' file must be, and all that is not a tensor."""

    step: Count
    num_bytes: Count
    sha256: Hex
    """Of the tensors' file, in hex."""

    facts: dict[str, Any]
    """JSON types."""

    @property
    def tensors_file(self) -> str:
        """Name of the tensors' file."""
        return _name(self.step) + TENSORS

    def to_bytes(self) -> bytes:
        """As JSON that tells its own damage."""
        return json.dumps(json_records.sealed(asdict(self)), indent=1).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Self:
        """What `to_bytes` gave; `ValueError` where it is anything else."""
        return json_records.build(cls, json_records.unsealed(json_records.parse(text), is_required=True))


class CheckpointFolder:
    """The pairs in one folder. One process writes; any number may read."""

    def __init__(self, folder: Folder, *, keep_last: int) -> None:
        """Know nothing yet of what the folder holds; it is made when it is written to."""
        self.folder = folder
        self.keep_last = keep_last
        self.last: Commit | None = None
        """Of the pair that was read or written last."""

        self._damaged: set[int] = set()

    def write(self, step: int, tensors: memoryview, facts: dict[str, Any]) -> None:
        """Write a pair; then remove the oldest, all but `keep_last`, and those that `newest` found damaged.

        A step that is there already keeps its tensors; its facts are replaced, in one piece.

        Raises:
            OSError, DataError: it could not be written; the pairs before it are as they were.
        """
        names = self.folder.names()
        if self.last is not None and self.last.step == step:
            commit = replace(self.last, facts=facts)
        else:
            self._remove(self._leftovers(names))
            digest = hashlib.sha256(tensors).hexdigest()
            commit = Commit(step=step, num_bytes=len(tensors), sha256=digest, facts=facts)
            self.folder.write(commit.tensors_file, tensors)
        self.folder.write(_name(step) + COMMIT, commit.to_bytes())
        self.last = commit
        self.folder.write(POINTER, _name(step).encode())
        self._damaged.discard(step)
        whole = sorted({*_steps(names), step} - self._damaged)
        for old in (*whole[: -self.keep_last], *self._damaged):
            self._remove((_name(old) + COMMIT, _name(old) + TENSORS))  # uncommitted before it is broken
        self._damaged.clear()

    def newest(self) -> tuple[Commit, bytes] | None:
        """The newest whole pair: its commit and its tensors' file; None where none was ever written.

        Raises:
            CheckpointError: there are some, and none is whole.
            OSError, DataError: the folder or a file cannot be read.
        """
        pointed = self._pointed()
        steps = {*_steps(self.folder.names()), *_steps([f"{pointed}{COMMIT}"])}
        for step in sorted(steps, reverse=True):
            try:
                commit = self._commit(step)
                tensors = self.tensors(commit)
            except DamagedError as error:
                logger.error("%s; the checkpoint before it is used, if there is one", error)
                self._damaged.add(step)
            else:
                self.last = commit
                return commit, tensors
        if pointed is None and not steps:
            return None
        raise CheckpointError(
            f"{self.folder} holds no whole checkpoint (the log above says what is wrong with each); put one back from "
            "a copy, remove that folder to begin anew, or choose another --name."
        )

    def tensors(self, commit: Commit) -> bytes:
        """The tensors' file of a pair; `DamagedError` where it is not the one that was committed."""
        file = commit.tensors_file
        content, digest = io.BytesIO(), hashlib.sha256()
        try:
            self.folder.download(file, content, on_bytes=digest.update)
        except FileNotFoundError:
            raise self._damage(file, "is missing") from None
        if (size := content.tell()) != commit.num_bytes:
            raise self._damage(file, f"has {size} bytes instead of {commit.num_bytes}")
        if (found := digest.hexdigest()) != commit.sha256:
            raise self._damage(file, f"is damaged: its sha256 is {found} instead of {commit.sha256}")
        return content.getvalue()

    def _commit(self, step: int) -> Commit:
        file = _name(step) + COMMIT
        try:
            text = self.folder.read(file)
        except FileNotFoundError:
            raise self._damage(file, "is missing") from None
        try:
            return Commit.from_bytes(text)
        except ValueError as error:
            raise self._damage(file, f"is damaged: {error}") from None

    def _damage(self, file: str, how: str) -> DamagedError:
        return DamagedError(f"{self.folder}/{file} {how}")

    def _pointed(self) -> str | None:
        try:
            return self.folder.read(POINTER).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _leftovers(self, names: list[str]) -> list[str]:
        """What writers left that were killed: half-written files, and tensors that were never committed."""
        known = {_name(step) + TENSORS for step in _steps(names)}
        if self.last is not None:
            known.add(self.last.tensors_file)  # whether its commit is listed already or not
        return [
            name
            for name in names
            if (re.fullmatch(rf"step_\d+{re.escape(TENSORS)}", name) and name not in known)
            or re.fullmatch(rf"\.(step_\d+|{POINTER})\..*{re.escape(TEMPORARY_SUFFIX)}", name)
        ]

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files that are in nobody's way: what cannot be removed is told, and stays."""
        try:
            for name in names:
                self.folder.remove(name)
        except (OSError, UnetdistError) as error:
            logger.warning("%s: what is no longer needed cannot be removed (%s)", self.folder, error)


def has_checkpoint(folder: Folder) -> bool:
    """Whether a run has got as far as a checkpoint there, be it whole or not."""
    names = folder.names()
    return POINTER in names or bool(list(_steps(names)))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(names: Iterable[str]) -> Iterator[int]:
    """Of the pairs that are committed."""
    for name in names:
        if found := re.fullmatch(rf"step_([0-9]{{8,18}}){re.escape(COMMIT)}", name):
            yield int(found[1])
