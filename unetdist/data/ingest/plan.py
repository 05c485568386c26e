"""What a folder of shards is made from, so that a run goes on only where the same one was stopped."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdist.data.ingest.convert import RECORDS, Job
from unetdist.data.manifest import MANIFEST_NAME
from unetdist.data.shards import index_path
from unetdist.errors import DataError
from unetdist.storage import TEMPORARY_SUFFIX, write_json

PLAN_NAME = "plan.json"
_SAMPLES = "samples"
_CONTENTS = "contents of the source files"
_UNTOLD = (_SAMPLES, _CONTENTS, "labels")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made if need be, and refused if it holds other things."""
    records = folder / RECORDS
    if not records.is_dir():
        for name in sorted(path.name for path in [*folder.glob("*.tar"), *folder.glob(MANIFEST_NAME)]):
            raise DataError(
                f"holds {name}, which this command did not write; choose another --out, or empty the folder.",
                source=folder,
            )
        records.mkdir(parents=True)
    descriptor = os.open(records, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(
                    "another process is writing to this folder; wait for it, or stop it.", source=folder
                ) from None
            # File systems without locks: the user keeps runs apart.
        yield
    finally:
        os.close(descriptor)


def settle(folder: Path, jobs: Sequence[Job], layout: dict[str, Any], *, overwrite: bool) -> None:
    """Compare the plan of `jobs` with that of the run before, then remove what the new one does not know.

    Raises:
        DataError: The folder is made from another plan, and `overwrite` is false.
    """
    for partial in [*folder.glob(f".*{TEMPORARY_SUFFIX}"), *(folder / RECORDS).glob(f".*{TEMPORARY_SUFFIX}")]:
        partial.unlink()  # of a run that was killed
    path = folder / RECORDS / PLAN_NAME
    plan = _plan(jobs, layout)
    if overwrite:
        _forget(folder, from_number=0)
    old = None
    with suppress(FileNotFoundError, json.JSONDecodeError):
        old = json.loads(path.read_text(encoding="utf-8"))
    if old is not None:
        _compare(old, plan, folder)
    _forget(folder, from_number=len(jobs))
    write_json(path, plan)


def drop(folder: Path) -> None:
    """Let the next run have another plan: the user is to mend the data. Finished shards it may still keep."""
    (folder / RECORDS / PLAN_NAME).unlink()
    with suppress(OSError):  # not empty: something was finished
        (folder / RECORDS).rmdir()
        folder.rmdir()


def num_finished(folder: Path) -> int:
    """Shards that a next run of the same plan would keep."""
    return sum(1 for _ in (folder / RECORDS).glob("[0-9]*.json"))


def _plan(jobs: Sequence[Job], layout: dict[str, Any]) -> dict[str, Any]:
    samples = [sample for job in jobs for sample in job.samples]
    keys = json.dumps([[sample.key, sample.image, sample.mask] for sample in samples])
    plan = {
        **asdict(jobs[0].options),
        **layout,
        "labels": [" ".join(map(str, record.values())) for record in jobs[0].palette.to_records()],
        "num_samples": len(samples),
        _SAMPLES: hashlib.sha256(keys.encode()).hexdigest(),
        _CONTENTS: hashlib.sha256(" ".join(sample.stamp for sample in samples).encode()).hexdigest(),
    }
    normal: dict[str, Any] = json.loads(json.dumps(plan))  # tuples become lists, as in the file
    return normal


def _compare(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    changed = [name for name in new if old.get(name) != new[name]]
    if not (folder / MANIFEST_NAME).is_file() and changed == [_CONTENTS]:
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


def _forget(folder: Path, *, from_number: int) -> None:
    """Remove the finished shards from a number on, and with the first also plan and manifest."""
    if from_number == 0:
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        (folder / RECORDS / PLAN_NAME).unlink(missing_ok=True)
    for record in (folder / RECORDS).glob("[0-9]*.json"):
        if int(record.stem) >= from_number:
            tar = folder / f"{record.stem}.tar"
            for path in (record, index_path(tar), tar):
                path.unlink(missing_ok=True)
