"""Which process makes which shards, and whether a run may continue what an earlier one wrote to the same folder."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from unetdist.cli import json_records
from unetdist.data.manifest import MANIFEST_NAME
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.foreign_tars import IndexJob
from unetdist.sharding.shard_job import RECORDS, ShardJob, WriteJob
from unetdist.storage.files import TEMPORARY_SUFFIX, HeldError, hold_lock
from unetdist.storage.folders import Folder, open_folder

PLAN_NAME = f"{RECORDS}/plan.json"
KIND = "kind"
# Kinds of plans: shards of our own, tars of others.
WRITE, INDEX = "write", "index"

_SAMPLES = "samples"
_CONTENTS = "contents of the source files"
# Entries of a plan whose values mean nothing to the user.
_NOT_SHOWN = (_SAMPLES, _CONTENTS, "labels")


@dataclass(frozen=True)
class WorkPartition:
    """The place of this process among those that run the same command."""

    rank: int = 0
    world_size: int = 1
    is_launched: bool = False
    """Started together by one launcher, whose rank 0 shows the progress."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank ({self.rank}) must be from 0 to world_size - 1 ({self.world_size - 1}); give each of the "
                f"{self.world_size} processes another one (an array of SLURM has no gaps: --array=0-N)."
            )


def find_partition(
    env: Mapping[str, str] = os.environ, *, rank: int | None = None, world_size: int | None = None
) -> WorkPartition:
    """The partition from the arguments, else from `accelerate launch`, torchrun or a SLURM array in `env`.

    Raises:
        ConfigError: One of rank and world_size without the other, or a rank beyond the world.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("--rank and --world-size go together; give both, or neither.")
    if rank is not None and world_size is not None:
        return WorkPartition(rank, world_size)
    launched, in_array = int(env.get("WORLD_SIZE", 1)), int(env.get("SLURM_ARRAY_TASK_COUNT", 1))
    # A stray RANK without WORLD_SIZE is not a launch.
    place = int(env.get("RANK", 0)) if launched > 1 else 0
    if in_array == 1:
        return WorkPartition(place, launched, is_launched=launched > 1)
    # SLURM arrays may start anywhere and have steps (--array=1-9:2); numbers with gaps end up beyond the world.
    task, first, step = (
        int(env.get(f"SLURM_ARRAY_TASK_{name}", default)) for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1))
    )
    return WorkPartition((task - first) // step * launched + place, in_array * launched)


@contextmanager
def hold(folder: Folder, partition: WorkPartition, *, kind: str) -> Iterator[None]:
    """Lock `folder`, which is made if need be, against other runs and a second process of the same rank.

    A remote folder cannot be locked.

    Raises:
        DataError: It is locked, or contains shards that are not ours although `kind` is `WRITE`.
    """
    # A run writes its plan before any tar, so tars without records belong to something else.
    others = [*folder.names(".tar"), *folder.names(MANIFEST_NAME)] if kind == WRITE else []
    if others and not open_folder(folder.where(RECORDS)).names():
        raise DataError(
            f"contains {others[0]}, which this command did not write; choose another --out, or empty the folder.",
            source=folder,
        )
    with ExitStack() as held:
        if folder.is_local:
            records = folder.path(RECORDS)
            records.mkdir(parents=True, exist_ok=True)
            is_shared = partition.world_size > 1
            # Processes that share the work lock the folder together, and each its own rank alone.
            try:
                held.enter_context(hold_lock(records, is_shared=is_shared))
                if is_shared:
                    place = records / f"{partition.rank}-of-{partition.world_size}.lock"
                    place.touch()
                    held.enter_context(hold_lock(place))
            except HeldError:
                raise DataError(
                    "another process is writing to this folder; wait for it, or stop it. Several processes share the "
                    "work with --rank R --world-size N, each with a different R.",
                    source=folder,
                ) from None
        yield


def settle(folder: Folder, plan: dict[str, Any], num_shards: int, partition: WorkPartition, *, overwrite: bool) -> None:
    """Compare the plan with that of the last run, then remove shards that the new plan does not contain.

    Raises:
        DataError: The folder was made from another plan, and `overwrite` is false.
    """
    if folder.is_local:
        _remove_partials(folder, partition)
    old = None
    # A damaged plan counts as none, because the records of the shards tell what these were made from.
    with suppress(FileNotFoundError, ValueError):
        old = json_records.build(dict[str, Any], json_records.parse(folder.read(PLAN_NAME)))
    if old == plan:
        return
    if old is not None:
        _compare(old, plan, folder, overwrite=overwrite)
        folder.remove(MANIFEST_NAME)
    # Other shards stay until new ones replace them: other processes may have started with the new plan.
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
    """Remove plan, manifest and records of bad shards, so that the next run may use corrected data."""
    folder.remove(MANIFEST_NAME)
    folder.remove(PLAN_NAME)
    for name in _records_in(folder, bad=True):
        folder.remove(f"{RECORDS}/{name}")
    if folder.is_local:
        with suppress(OSError):  # not empty, because some shards are finished
            folder.path(RECORDS).rmdir()
            folder.path("").rmdir()


def num_finished(folder: Folder) -> int:
    """Number of shards that a next run of the same plan would keep."""
    return len(_records_in(folder))


def plan_to_write(jobs: Sequence[WriteJob], layout: dict[str, Any]) -> dict[str, Any]:
    """The plan of shards of our own."""
    samples = [sample for job in jobs for sample in job.samples]
    keys = json.dumps([[sample.key, sample.image, sample.mask] for sample in samples])
    contents = {
        "num_samples": len(samples),
        _SAMPLES: hashlib.sha256(keys.encode()).hexdigest(),
        _CONTENTS: hashlib.sha256(" ".join(sample.stamp for sample in samples).encode()).hexdigest(),
    }
    return _plan(WRITE, jobs[0], {**layout, **contents})


def plan_to_index(jobs: Sequence[IndexJob]) -> dict[str, Any]:
    """The plan of the indexes of tars of others."""
    tars = json.dumps([job.shard_name for job in jobs])
    contents = {
        "num_tars": len(jobs),
        "tars": hashlib.sha256(tars.encode()).hexdigest(),  # signed URLs must not be stored
        "names": asdict(jobs[0].names),
    }
    return _plan(INDEX, jobs[0], contents)


def _plan(kind: str, job: ShardJob, contents: dict[str, Any]) -> dict[str, Any]:
    labels = [" ".join(map(str, record.values())) for record in job.palette.to_records()]
    plan = {KIND: kind, **asdict(job.options), "labels": labels, **contents}
    # Through JSON, so that tuples become lists as in the plan that is read from the file.
    normal: dict[str, Any] = json.loads(json.dumps(plan))
    return normal


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Folder, *, overwrite: bool) -> None:
    if old.get(KIND, WRITE) != new[KIND]:
        what = "shards that this program wrote" if new[KIND] == INDEX else "tars that others wrote"
        raise DataError(f"contains index and manifest of {what}; give another folder with --out.", source=folder)
    changed = [name for name in new if old.get(name) != new[name] and name != KIND]
    # Nothing was published yet, so a corrected input may continue.
    if overwrite or (changed == [_CONTENTS] and not folder.names(MANIFEST_NAME)):
        return  # The user fixed files; shards that contain them are unfinished, or will be written again.
    differences = [
        f"{name} changed" if name in _NOT_SHOWN else f"{name} was {old.get(name)}, is {new[name]}" for name in changed
    ]
    if differences:
        raise DataError(
            f"was made from something else ({'; '.join(differences)}); use --overwrite to replace it, another --out, "
            "or the previous options.",
            source=folder,
        )


def _records_in(folder: Folder, *, bad: bool = False) -> list[str]:
    pattern = re.compile(r"\d{6,}\.bad\.json" if bad else r"\d{6,}\.json")
    return [name for name in open_folder(folder.where(RECORDS)).names(".json") if pattern.fullmatch(name)]


def _remove_partials(folder: Folder, partition: WorkPartition) -> None:
    """Remove half-written files of killed runs, but not those of other processes, which may be running."""
    for path in [folder.path(""), folder.path(RECORDS)]:
        for partial in path.glob(f".*{TEMPORARY_SUFFIX}"):
            number = re.match(r"\.(\d{6,})\.", partial.name)
            if partition.world_size == 1 or (number and int(number[1]) % partition.world_size == partition.rank):
                partial.unlink(missing_ok=True)
