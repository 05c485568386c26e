"""Compares shards with their manifest: sizes, hashes, indexes, and every sample decoded and counted."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from unetdist.cli.credentials import mask
from unetdist.cli.logs import progress
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.data.manifest import Manifest, Shard
from unetdist.data.open_shard import REMEDY, read_rows
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples
from unetdist.data.tar_index import read_members
from unetdist.errors import DataError
from unetdist.sharding.account import Account
from unetdist.sharding.describe import count, describe_problems
from unetdist.sharding.pool import run_jobs
from unetdist.sharding.sources import Problem
from unetdist.storage.files import file_sha256, open_file
from unetdist.storage.folders import Folder, open_folder

LOST, CHANGED, BAD_INDEX = "lost shard", "shard that is not the manifest's", "bad index"
BAD_SAMPLE, MISCOUNTED = "bad sample", "count that is not the manifest's"


def verify(folder: str | Path | Folder, manifest: Manifest, *, workers: int = 1) -> Account:
    """Read a whole data set in `workers` processes, compare it with its manifest, and count its good samples.

    A remote shard is downloaded into a temporary folder and removed after it was verified.

    Raises:
        DataError: A server cannot be reached, the temporary folder is full, or a worker was killed; problems
            of the data set itself are in the account.
    """
    folder = open_folder(folder)
    jobs = [replace(manifest, shards=(shard,), num_samples=shard.num_samples) for shard in manifest.shards]
    total = Account()
    with progress(f"verifying {folder}", len(jobs)) as bar:

        def done(account: Account) -> None:
            total.add(account)
            bar.advance()

        run_jobs(partial(_verify_shard, folder), jobs, workers=workers, done=done)
    total.problems.sort(key=lambda problem: problem.where)
    # With problems, wrong counts are a consequence and would hide the cause.
    if not total.problems:
        _compare_counts(total, manifest)
    return total


def describe(account: Account, folder: Folder, manifest: Manifest) -> str:
    """The result, and all problems; long lists are cut, and complete in a file."""
    good = f"{account.statistics.num_samples:,} of {manifest.num_samples:,} samples"
    if not account.problems:
        megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
        return f"{folder}: good. Verified {good}, {len(manifest.shards):,} shards, {megabytes:.1f} MB."
    list_folder = folder if folder.is_local else open_folder(Path())
    return (
        f"{folder}: {count(len(account.problems), 'problem')}; {good} are good.\n"
        f"{describe_problems(account.problems, list_folder)}\n"
        "Copy these shards again, or run the command that wrote them: it keeps good shards."
    )


def _verify_shard(folder: Folder, manifest: Manifest) -> Account:
    (shard,) = manifest.shards
    account = Account()
    where = mask(folder.where(shard.name))
    try:
        with _local_copy(folder, shard) as (local, here, sha256):
            if here.num_bytes != shard.num_bytes:
                _note(account, CHANGED, where, f"has {here.num_bytes} bytes, the manifest says {shard.num_bytes}")
            elif sha256 != shard.sha256:
                _note(account, CHANGED, where, f"has sha256 {sha256}, the manifest says {shard.sha256}")
            if _compare_index(local, here, where, account):
                _decode(ShardReader(local, replace(manifest, shards=(here,))), where, account)
    except OSError as error:
        _note(account, LOST, where, f"cannot be read ({error.strerror or 'it is missing'})")
    return account


@contextmanager
def _local_copy(folder: Folder, shard: Shard) -> Iterator[tuple[Folder, Shard, str]]:
    """A local folder with the shard and its index, the size of the shard there, and its SHA-256."""
    if folder.is_in_place(shard.name):
        path = folder.path(shard.name)
        yield folder, replace(shard, num_bytes=path.stat().st_size), file_sha256(path)
        return
    with tempfile.TemporaryDirectory(prefix="unetdist-verify-") as name:
        here, path = open_folder(name), Path(name, "shard.tar")
        copy = replace(shard, name=path.name)
        try:
            with open(path, "wb") as file:
                folder.download(shard.name, file)
            with suppress(FileNotFoundError):  # reported where the index is read
                here.write(copy.index_name, folder.read(shard.index_name))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(
                f"no space for a shard of {shard.num_bytes / 1e6:.0f} MB; free some, set TMPDIR to another folder, "
                "or use fewer --workers.",
                source=Path(name).parent,
            ) from None
        yield here, replace(copy, num_bytes=path.stat().st_size), file_sha256(path)


def _compare_index(folder: Folder, shard: Shard, where: str, account: Account) -> bool:
    """Whether the index is usable; notes every sample that is not a member of the tar."""
    path = folder.path(shard.name)
    try:
        with open_file(path) as file:
            members = list(read_members(file, where))
    except DataError as error:
        _note(account, CHANGED, where, error)
        # Without members the index is only checked for its own form.
        members = []
    try:
        rows = read_rows(folder, shard)
    except DataError as error:
        _note(account, BAD_INDEX, where, error)
        return False
    headers = {member.header_offset for member in members}
    contents = {(member.offset, member.size) for member in members}
    for row, (header, *image, mask_offset, mask_size, _) in enumerate(rows.tolist()):
        is_sample = header in headers and {tuple(image), (mask_offset, mask_size)} <= contents
        if members and not is_sample:
            _note(account, BAD_INDEX, f"{where}, sample {row}", "does not point to a member of the tar")
    return True


def _decode(reader: ShardReader, where: str, account: Account) -> None:
    manifest = reader.manifest
    samples = Samples(reader, channels=manifest.channels, num_classes=manifest.num_classes)
    for row in range(manifest.num_samples):
        try:
            sample = samples.finish(row, *samples.load(row))
        except DataError as error:
            _note(account, BAD_SAMPLE, f"{where}, {_name(reader, row)}", error)
        else:
            account.statistics.sizes[sample.mask.shape[0], sample.mask.shape[1]] += 1
            account.statistics.pixels += sample.counts
            account.statistics.images += sample.counts > 0


def _note(account: Account, kind: str, where: str, error: str | Exception) -> None:
    """Add a problem without the place and remedy of the error, which the report states once."""
    detail = str(error).removeprefix(f"{getattr(error, 'source', '')}: ").removesuffix(f"; {REMEDY}")
    account.problems.append(Problem(kind, where, detail))


def _name(reader: ShardReader, row: int) -> str:
    try:
        return f"key {reader.key(row)}"
    except DataError:
        return f"sample {row}"


def _compare_counts(account: Account, manifest: Manifest) -> None:
    names, statistics = Palette.from_records(manifest.palette_records).class_names, account.statistics
    for index, name in enumerate(names):
        for what, found, listed in (
            ("pixels", statistics.pixels, manifest.class_pixels),
            ("images", statistics.images, manifest.class_images),
        ):
            if found[index] != listed[index]:
                fact = f"{found[index]:,} {what}, the manifest says {listed[index]:,}"
                _note(account, MISCOUNTED, f"class {name}", fact)
    ignored = statistics.pixels[IGNORE_INDEX]
    if ignored != manifest.ignored_pixels:
        _note(account, MISCOUNTED, "ignored", f"{ignored:,} pixels, the manifest says {manifest.ignored_pixels:,}")
