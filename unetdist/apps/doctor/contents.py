"""What is in the shards: pictures that decode, labels in range; all of it if asked to; and how fast it is read."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.findings import Finding, by_rank, listed, ok, problem, size, warning
from unetdist.cli.logs import console
from unetdist.data.loader import open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.open_shard import REMEDY, check_size
from unetdist.data.samples import Samples
from unetdist.errors import DataError
from unetdist.sharding import verify
from unetdist.sharding.pool import available_cores
from unetdist.storage import remote
from unetdist.storage.folders import Folder

DECODED = 64
"""Samples of each data set that are decoded by each rank, if there is time."""

MOST_COMPARED = 5_000_000
"""Samples whose checksums fit in memory without much ado."""


def decode(case: Case, split: str) -> dict[str, Any]:
    """This rank's part of a choice of samples, decoded: which cannot be used."""
    folder, manifest = case.data[split]
    reader = open_reader(case.settings.data, folder, manifest)
    samples = Samples(reader, channels=case.settings.model.in_channels, num_classes=manifest.num_classes)
    world = case.world
    number = min(DECODED * world.world_size, manifest.num_samples)
    chosen = random.Random(0).sample(range(manifest.num_samples), number)[world.rank :: world.world_size]
    deadline = time.monotonic() + case.budget_s
    wrong, checked = [], 0
    for sample_id in chosen:
        if checked and time.monotonic() > deadline:
            break
        if is_lost(folder, manifest, shard_of(manifest, sample_id)):
            continue
        checked += 1
        try:
            samples.finish(sample_id, *samples.load(sample_id))
        except DataError as error:
            wrong.append(_short(error))
    return {"checked": checked, "wrong": wrong}


def judge_decoded(case: Case, ranks: list[dict[str, Any]], split: str) -> Iterator[Finding]:
    """Pictures that decode, with masks of known classes."""
    what, location = f"{split} labels", getattr(case.settings.data, split)
    if any(rank["wrong"] for rank in ranks):
        remedy = f"`python launch/shard_dataset.py verify {location}` names all; write these shards again"
        text = by_rank([listed(rank["wrong"]) for rank in ranks])
        is_borne = split == "train" and case.settings.data.on_bad_sample == "blank"
        yield (warning if is_borne else problem)(what, text, remedy)
        return
    if not any(rank["checked"] for rank in ranks):
        return  # all lost, which was told
    manifest = case.data[split][1]
    ignored = manifest.ignored_pixels / max(1, manifest.num_pixels)
    fact = f"{sum(rank['checked'] for rank in ranks)} samples decoded, classes in range; {100 * ignored:.1f} % ignored"
    if ignored > 0.5:
        yield warning(what, fact, "see that the colours of Labels.txt are those of the masks")
    else:
        yield ok(what, fact)


def leaks(case: Case) -> list[str] | None:
    """On rank 0: validation samples that are in the training set too, byte by byte; None: too many to compare.

    Their checksums in the indexes name candidates, and these are read.
    """
    if not case.world.is_main:
        return []
    if max(manifest.num_samples for _, manifest in case.data.values()) > MOST_COMPARED:
        return None
    readers = {
        split: open_reader(case.settings.data, folder, manifest)
        for split, (folder, manifest) in case.data.items()
    }
    found = []
    with suppress(DataError, OSError):  # lost and damaged shards are found by other checks
        train = {row: number for number, row in enumerate(readers["train"].checksums())}
        for number, row in enumerate(readers["val"].checksums()):
            twin = train.get(row)
            if twin is not None and readers["train"].read(twin) == readers["val"].read(number):
                found.append(f"{readers['val'].source(number)} is {readers['train'].source(twin)}")
    return found


def judge_leaks(case: Case, ranks: list[list[str] | None]) -> Iterator[Finding]:
    """No validation sample was trained on."""
    found, what = ranks[0], "train and val"
    if found is None:
        yield warning(what, f"not compared: there are more than {MOST_COMPARED:,} samples")
    elif found:
        total = case.data["val"][1].num_samples
        text = f"{len(found)} of {total:,} validation samples are in the training set too: {listed(found)}"
        yield warning(what, text, "scores will be too good; write the shards again, with copies on one side")
    else:
        yield ok(what, "no sample is in both")


def read_all(case: Case, split: str) -> list[str] | None:
    """On rank 0: everything that is wrong, after reading all."""
    if not case.world.is_main:
        return None
    folder, manifest = case.data[split]
    before, console.quiet = console.quiet, True
    try:
        found = verify.verify(folder, manifest, workers=available_cores()).problems
    finally:
        console.quiet = before
    return [f"{each.where}: {each.kind} ({each.detail})" for each in found]


def judge_all(case: Case, ranks: list[list[str] | None], split: str) -> Iterator[Finding]:
    """Every byte as it was written."""
    found, what = ranks[0] or [], f"all of {split}"
    if found:
        yield problem(what, listed(found) or "", REMEDY)
    else:
        yield ok(
            what,
            f"all {case.data[split][1].num_samples:,} samples read, decoded and counted: as the manifest says",
        )


def shard_of(manifest: Manifest, sample_id: int) -> int:
    """The number of a sample's shard."""
    return int(np.searchsorted(np.cumsum(manifest.shard_sizes), sample_id, side="right"))


def is_lost(folder: Folder, manifest: Manifest, number: int) -> bool:
    """Whether a local shard is missing or of another size, which is told where sizes are compared."""
    shard = manifest.shards[number]
    if not folder.is_local or remote.is_url(shard.name):
        return False
    try:
        check_size(folder.path(shard.name), shard)
    except DataError:
        return True
    return False


def _short(error: DataError) -> str:
    """The remedy is said once for all."""
    return str(error).removesuffix(" Then write its shard again.").removesuffix("; write the shards again.")


def speed(case: Case) -> dict[str, float] | None:
    """Reading from the disk, or the server, as all ranks do so at once; None where all is lost."""
    folder, manifest = case.data["train"]
    reader = open_reader(case.settings.data, folder, manifest)
    numbers = np.random.default_rng(case.world.rank).permutation(len(manifest.shards))
    starts = np.cumsum(manifest.shard_sizes) - manifest.shard_sizes
    num_bytes = num_samples = 0
    seconds = 0.0
    for number in numbers.tolist():
        shard = manifest.shards[number]
        if is_lost(folder, manifest, number):
            continue
        if folder.is_local and not remote.is_url(shard.name):
            forget(folder.path(shard.name))
        began = time.perf_counter()
        for row in range(shard.num_samples):
            image, mask = reader.read(int(starts[number]) + row)
            num_bytes, num_samples = num_bytes + len(image) + len(mask), num_samples + 1
            if time.perf_counter() - began + seconds > case.budget_s / 3:
                break
        seconds += time.perf_counter() - began
        if seconds > case.budget_s / 3:
            break
    if not num_samples:
        return None
    return {"bytes_s": num_bytes / seconds, "samples_s": num_samples / seconds}


def forget(path: Path) -> None:
    """Let the system drop what it remembers of a file, so that the disk is read."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def judge_speed(case: Case, ranks: list[dict[str, float] | None]) -> Iterator[Finding]:
    """How fast; whether that is fast enough is said once the step is measured."""
    good = [rank for rank in ranks if rank is not None]
    if not good:
        return  # all lost, which was told
    case.measured.read_bytes_s = min(rank["bytes_s"] for rank in good)
    samples_s = min(rank["samples_s"] for rank in good)
    each = "each rank, at the least: " if len(ranks) > 1 else ""
    yield ok("reading", f"{each}{size(case.measured.read_bytes_s)}/s, {samples_s:,.0f} samples/s")
