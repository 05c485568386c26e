"""What a folder of shards is made from, so that a run goes on only where the same one was stopped."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdist.cli import json_records
from unetdist.data.manifest import MANIFEST_NAME
from unetdist.errors import DataError
from unetdist.sharding.foreign import TarJob
from unetdist.sharding.records import RECORDS
from unetdist.sharding.shard_job import ShardJob
from unetdist.sharding.share import Share
from unetdist.storage import locks
from unetdist.storage.files import TEMPORARY_SUFFIX
from unetdist.storage.folders import Folder, open_folder

PLAN_NAME = f"{RECORDS}/plan.json"
KIND = "kind"
WRITE, INDEX = "write", "index"
"""Kinds of plans: shards of our own, tars of others."""

_SAMPLES = "samples"
_CONTENTS = "contents of the source files"
_UNTOLD = (_SAMPLES, _CONTENTS, "labels")


@contextmanager
def hold(folder: Folder, share: Share, *, kind: str) -> Iterator[None]:
    """Keep other runs, and a second process with this place, out of `folder`, which is made if need be.

    Of runs that share the work, only processes of one world size are let in together.

    Only a local folder can be held.

    Raises:
        DataError: It is held, or holds shards that are not ours although `kind` is `WRITE`.
    """
    # Before the records: who writes tars has written a plan before.
    others = [*folder.names(".tar"), *folder.names(MANIFEST_NAME)] if kind == WRITE else []
    if others and not open_folder(folder.where(RECORDS)).names():
        raise DataError(
            f"holds {others[0]}, which this command did not write; choose another --out, or empty the folder.",
            source=folder,
        )
    with ExitStack() as held:
        if folder.is_local:
            records = folder.path(RECORDS)
            records.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(records, folder, is_shared=not share.is_all))
            if not share.is_all:
                place = records / f"{share.rank}-of-{share.world_size}.lock"
                place.touch()
                held.enter_context(_locked(place, folder, is_shared=False))
                _refuse_other_sizes(records, folder, share)
        yield


def _refuse_other_sizes(records: Path, folder: Folder, share: Share) -> None:
    """`DataError` where a process of another world size works: the two would make the same shards.

    Asked while this process's own place is held: of two that come at once, at least one sees the other.
    """
    for path in sorted(records.glob("*-of-*.lock")):
        rank, _, world_size = path.stem.partition("-of-")
        if world_size == str(share.world_size):
            continue
        message = (
            f"a run of {world_size} processes is writing to this folder (its process {rank} is at work), and this "
            f"one is of {share.world_size}; wait for it, or stop it. All that share the work need one --world-size."
        )
        # Shared: two that ask at once do not take each other for the one at work. Left behind: nobody holds it.
        with _locked(path, folder, is_shared=True, message=message):
            pass


_IS_HELD = (
    "another process is writing to this folder; wait for it, or stop it. Several processes share the work with "
    "--rank R --world-size N, each with an R of its own."
)


@contextmanager
def _locked(path: Path, folder: Folder, *, is_shared: bool, message: str = _IS_HELD) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(locks.hold(path, is_shared=is_shared))
        except locks.HeldError:
            raise DataError(message, source=folder) from None
        yield


def settle(folder: Folder, plan: dict[str, Any], num_shards: int, share: Share, *, overwrite: bool) -> None:
    """Compare a plan with that of the run before, then remove what the new one does not know.

    With `overwrite` the shards of another plan stay until their successors replace them: other processes may have
    begun with the new one.

    Raises:
        DataError: The folder is made from another plan, and `overwrite` is false.
    """
    if folder.is_local:
        _remove_partials(folder, share)
    old = None
    with suppress(
        FileNotFoundError, ValueError
    ):  # a damaged one is as good as none: the records know their plan
        old = json_records.build(dict[str, Any], json_records.parse(folder.read(PLAN_NAME)))
    if old == plan:
        return
    if old is not None:
        _compare(old, plan, folder, overwrite=overwrite)
        folder.remove(MANIFEST_NAME)
    for name in _records_in(folder):
        if (number := int(name.partition(".")[0])) >= num_shards:
            tar = f"{number:06d}.tar"
            for unknown in [f"{RECORDS}/{name}", *([f"{tar}.idx", tar] if plan[KIND] == WRITE else [])]:
                folder.remove(unknown)
    try:
        folder.write(PLAN_NAME, json.dumps(plan, indent=1).encode())
    except DataError as error:
        remedy = " Or write index and manifest to another folder: --out DIR." if plan[KIND] == INDEX else ""
        raise DataError(f"{error}{remedy}") from None


def drop(folder: Folder) -> None:
    """Let the next run have another plan: the user is to mend the data. Finished shards it may still keep."""
    folder.remove(MANIFEST_NAME)
    folder.remove(PLAN_NAME)
    for name in _records_in(folder, bad=True):
        folder.remove(f"{RECORDS}/{name}")
    if folder.is_local:
        with suppress(OSError):  # not empty: something was finished
            folder.path(RECORDS).rmdir()
            folder.path("").rmdir()


def num_finished(folder: Folder) -> int:
    """Shards that a next run of the same plan would keep."""
    return len(_records_in(folder))


def plan_of(jobs: Sequence[ShardJob], layout: dict[str, Any]) -> dict[str, Any]:
    """What shards of our own are made from."""
    samples = [sample for job in jobs for sample in job.samples]
    keys = json.dumps([[sample.key, sample.image, sample.mask] for sample in samples])
    plan = {
        KIND: WRITE,
        **asdict(jobs[0].options),
        **layout,
        "labels": _labels(jobs[0]),
        "num_samples": len(samples),
        _SAMPLES: hashlib.sha256(keys.encode()).hexdigest(),
        _CONTENTS: hashlib.sha256(" ".join(sample.stamp for sample in samples).encode()).hexdigest(),
    }
    return _normal(plan)


def plan_of_tars(jobs: Sequence[TarJob]) -> dict[str, Any]:
    """What the index of tars of others is made from."""
    tars = json.dumps([job.shard_name for job in jobs])  # hashed: signed URLs are nobody's business
    return _normal(
        {
            KIND: INDEX,
            "num_tars": len(jobs),
            "tars": hashlib.sha256(tars.encode()).hexdigest(),
            "names": asdict(jobs[0].names),
            **asdict(jobs[0].options),
            "labels": _labels(jobs[0]),
        }
    )


def _labels(job: ShardJob | TarJob) -> list[str]:
    return [" ".join(map(str, record.values())) for record in job.palette.to_records()]


def _normal(plan: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from the file: tuples become lists."""
    normal: dict[str, Any] = json.loads(json.dumps(plan))
    return normal


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Folder, *, overwrite: bool) -> None:
    if old.get(KIND, WRITE) != new[KIND]:
        what = "shards that this program wrote" if new[KIND] == INDEX else "tars that others wrote"
        raise DataError(f"holds index and manifest of {what}; give another folder with --out.", source=folder)
    changed = [name for name in new if old.get(name) != new[name] and name != KIND]
    if overwrite or (changed == [_CONTENTS] and not folder.names(MANIFEST_NAME)):
        return  # Files were mended; the shards that hold them are not finished, or are written again.
    if "num_samples" in changed:
        changed.remove(_SAMPLES)
    told = [
        f"{name} changed" if name in _UNTOLD else f"{name} was {old.get(name)}, is {new[name]}"
        for name in changed
    ]
    if told:
        raise DataError(
            f"was made from something else ({'; '.join(told)}); use --overwrite to write it anew, another --out, "
            "or the former options.",
            source=folder,
        )


def _records_in(folder: Folder, *, bad: bool = False) -> list[str]:
    pattern = re.compile(r"\d{6,}\.bad\.json" if bad else r"\d{6,}\.json")
    return [name for name in open_folder(folder.where(RECORDS)).names(".json") if pattern.fullmatch(name)]


def _remove_partials(folder: Folder, share: Share) -> None:
    """Of runs that were killed; those of other processes, which may be alive, stay."""
    for path in [folder.path(""), folder.path(RECORDS)]:
        for partial in path.glob(f".*{TEMPORARY_SUFFIX}"):
            number = re.match(r"\.(\d{6,})\.", partial.name)
            if share.is_all or (number and int(number[1]) % share.world_size == share.rank):
                partial.unlink(missing_ok=True)
