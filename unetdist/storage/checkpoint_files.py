"""A folder of numbered checkpoints, each of which exists whole or not at all, on any disk or object store.

`step_00000042.safetensors` is written first, then the commit `step_00000042.json` with its size and hash: without a
commit there is no checkpoint. Each file appears at once (by a rename, or as one object of a store), so every committed
checkpoint is whole whenever the process dies; the hashes find any other damage.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from unetdist.cli import json_records
from unetdist.cli.json_records import Count, Hex
from unetdist.cli.logs import logger
from unetdist.errors import CheckpointError, UnetdistError
from unetdist.storage.files import TEMPORARY_SUFFIX
from unetdist.storage.folders import Folder

# File that names the newest checkpoint, for people.
POINTER = "latest"

TENSORS = ".safetensors"
COMMIT = ".json"


class DamagedError(CheckpointError):
    """A file is not what was written."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Size and hash of the tensors' file, and everything in a checkpoint that is not a tensor."""

    step: Count
    num_bytes: Count
    """Size of the tensors' file."""
    sha256: Hex
    """SHA-256 of the tensors' file."""
    facts: dict[str, Any]
    """Values of JSON types."""


class CheckpointFolder:
    """The checkpoints in one folder. One process writes; any number may read."""

    def __init__(self, folder: Folder, *, keep_last: int) -> None:
        """Read nothing yet; the folder is made by the first `write`."""
        self.folder = folder
        self.keep_last = keep_last
        self.last: Commit | None = None
        """The checkpoint that was read or written last."""
        self._damaged: set[int] = set()

    def write(self, step: int, tensors: bytes, facts: dict[str, Any]) -> None:
        """Write a checkpoint; then remove all but `keep_last`, and those that `newest` found damaged.

        A step that was written already keeps its tensors; its facts are replaced, in one piece.

        Raises:
            OSError, DataError: It could not be written; the checkpoints before it are unchanged.
        """
        names = self.folder.names()
        if self.last is not None and self.last.step == step:
            commit = replace(self.last, facts=facts)
        else:
            # Before the new tensors need their room on the disk.
            self._remove(self._leftovers(names))
            digest = hashlib.sha256(tensors).hexdigest()
            commit = Commit(step=step, num_bytes=len(tensors), sha256=digest, facts=facts)
            self.folder.write(_name(step) + TENSORS, tensors)
        # The tensors are complete by now: a commit never names a file that is not there.
        text = json.dumps(json_records.sealed(asdict(commit)), indent=1)
        self.folder.write(_name(step) + COMMIT, text.encode())
        self.last = commit
        self.folder.write(POINTER, _name(step).encode())
        self._damaged.discard(step)
        whole = sorted({*_steps(names), step} - self._damaged)
        for old in (*whole[: -self.keep_last], *self._damaged):
            # The commit goes first: a checkpoint never exists without its tensors.
            self._remove((_name(old) + COMMIT, _name(old) + TENSORS))
        self._damaged.clear()

    def newest(self) -> tuple[Commit, bytes] | None:
        """The newest whole checkpoint, as its commit and its tensors' file; None if none was ever written.

        Raises:
            CheckpointError: There are checkpoints, but none is whole.
            OSError, DataError: The folder or a file cannot be read.
        """
        for step in sorted(_steps(self.folder.names()), reverse=True):
            try:
                commit = self._commit(step)
                tensors = self.tensors(commit)
            except DamagedError as error:
                logger.error("%s; the checkpoint before it is used, if there is one", error)
                self._damaged.add(step)
            else:
                self.last = commit
                return commit, tensors
        if not has_checkpoint(self.folder):
            return None
        raise CheckpointError(
            f"{self.folder} holds no whole checkpoint (the log above says what is wrong with each); restore one from "
            "a copy, remove that folder to start from the beginning, or choose another --name."
        )

    def newest_facts(self) -> dict[str, Any]:
        """The facts of the newest commit that can be read, without its tensors; {} if there is none."""
        for step in sorted(_steps(self.folder.names()), reverse=True):
            with suppress(DamagedError):  # `newest` will tell
                return self._commit(step).facts
        return {}

    def tensors(self, commit: Commit) -> bytes:
        """The tensors' file; `DamagedError` if it is not the one that was committed."""
        content, file = io.BytesIO(), _name(commit.step) + TENSORS
        try:
            self.folder.download(file, content)
        except FileNotFoundError:
            raise self._damage(file, "is missing") from None
        data = content.getvalue()
        if len(data) != commit.num_bytes:
            raise self._damage(file, f"has {len(data)} bytes instead of {commit.num_bytes}")
        if (found := hashlib.sha256(data).hexdigest()) != commit.sha256:
            raise self._damage(file, f"is damaged: its sha256 is {found} instead of {commit.sha256}")
        return data

    def _commit(self, step: int) -> Commit:
        file = _name(step) + COMMIT
        try:
            values = json_records.unsealed(json_records.parse(self.folder.read(file)), is_required=True)
            return json_records.build(Commit, values)
        except FileNotFoundError:
            raise self._damage(file, "is missing") from None
        except ValueError as error:
            raise self._damage(file, f"is damaged: {error}") from None

    def _damage(self, file: str, how: str) -> DamagedError:
        return DamagedError(f"{self.folder}/{file} {how}")

    def _leftovers(self, names: list[str]) -> list[str]:
        """Files that killed writers left: half-written ones, and tensors without a commit."""
        known = {_name(step) + TENSORS for step in _steps(names)}
        return [
            name
            for name in names
            if (re.fullmatch(rf"step_\d+{re.escape(TENSORS)}", name) and name not in known)
            or re.fullmatch(rf"\.(step_\d+|{POINTER})\..*{re.escape(TEMPORARY_SUFFIX)}", name)
        ]

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files that are no longer needed. One that cannot be removed stays: it is in nobody's way."""
        try:
            for name in names:
                self.folder.remove(name)
        except (OSError, UnetdistError) as error:
            logger.warning("%s: a file that is no longer needed cannot be removed (%s)", self.folder, error)


def has_checkpoint(folder: Folder) -> bool:
    """Whether a run ever wrote a checkpoint there, whole or not."""
    names = folder.names()
    return POINTER in names or bool([*_steps(names)])


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(names: Iterable[str]) -> Iterator[int]:
    for name in names:
        if found := re.fullmatch(rf"step_([0-9]{{8,18}}){re.escape(COMMIT)}", name):
            yield int(found[1])
