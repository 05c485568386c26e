"""Checks of the shards: they match their manifest, and their classes can be learnt and scored."""

import os
import random
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.filesize import decimal as size

from unetdist.apps.doctor.examination import Examination, by_rank, listed
from unetdist.data.labels import Palette
from unetdist.data.loader import open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.open_shard import REMEDY
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples
from unetdist.errors import DataError, UnetdistError
from unetdist.sharding import verify
from unetdist.sharding.pool import available_cores
from unetdist.storage.folders import Folder

NAMES = {"train": "training set", "val": "validation set"}

# Samples of a data set that each rank decodes, if time allows.
MAX_DECODED = 64

# Samples whose checksums fit in memory easily.
MAX_COMPARED = 5_000_000


def check_data(exam: Examination) -> None:
    """Collective. Both data sets by themselves, then side by side."""
    for split in ("train", "val"):
        if getattr(exam.settings.data, split) is not None:
            _check_split(exam, split)
    if exam.settings.data.val is None:
        fact = "none: no mIoU will be measured, and the last weights are kept instead of the best"
        exam.warn("validation set", fact, "--data.val SHARDS")
    if "train" in exam.data:
        judge_classes(exam)
    if len(exam.data) == 2 and exam.settings.data.train != exam.settings.data.val:
        _check_overlap(exam)


def _check_split(exam: Examination, split: str) -> None:
    opened: list[tuple[Folder, Manifest]] = []

    def open_it() -> dict[str, str]:
        opened.append(open_data(exam.settings.data, getattr(exam.settings.data, split)))
        ((folder, manifest),) = opened
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
        text = f"{manifest.num_samples:,} samples in {shards}, {size(num_bytes)}, {manifest.num_classes} classes"
        return {"fingerprint": manifest.fingerprint, "text": f"{text}; {folder}"}

    if (answers := exam.ask(NAMES[split], open_it)) is None:
        return
    text = by_rank([rank["text"] for rank in answers])
    if len({rank["fingerprint"] for rank in answers}) > 1:
        exam.problem(NAMES[split], f"differs between ranks: {text}", "copy the same shards to all machines")
        return
    exam.ok(NAMES[split], text)
    exam.data[split] = opened[0]
    if (answers := exam.ask(f"{split} shards", lambda: read_some(exam, split))) is not None:
        judge_shards(exam, split, answers)
        judge_labels(exam, split, answers)
    if exam.full and (answers := exam.ask(f"all of {split}", lambda: _verify(exam, split))):
        fact = f"all {exam.data[split][1].num_samples:,} samples are as the manifest says"
        if answers[0]:
            exam.problem(f"all of {split}", listed(answers[0]) or "", REMEDY)
        else:
            exam.ok(f"all of {split}", fact)


def read_some(exam: Examination, split: str) -> dict[str, Any]:
    """Open this rank's part of the shards on its machine, and decode some of their samples.

    To open a shard is to compare its size and the hash of its index with the manifest.
    """
    folder, manifest = exam.data[split]
    cache = open_reader(exam.settings.data, folder, manifest).cache
    # Each machine may have its own copy, so its ranks look at all shards together.
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    mine = list(range(local_rank, len(manifest.shards), exam.world.local_world_size))
    random.Random(0).shuffle(mine)
    began = time.monotonic()
    wrong: list[str] = []
    bad: list[str] = []
    num_opened = num_decoded = 0
    for number in mine:
        spent_s = time.monotonic() - began
        if num_opened and not exam.full and spent_s > 4 * exam.budget_s:
            break
        num_opened += 1
        shard = manifest.shards[number]
        only = replace(manifest, shards=(shard,), num_samples=shard.num_samples)
        reader = ShardReader(folder, only, cache=cache)
        try:
            reader.read(0)
        except (UnetdistError, OSError) as error:
            wrong.append(reader.source(0) if isinstance(error, OSError) else _without_remedy(error))
            continue
        samples = Samples(reader, channels=exam.settings.model.in_channels, num_classes=manifest.num_classes)
        step = max(1, shard.num_samples * len(mine) // MAX_DECODED)
        for row in range(0, shard.num_samples, step):
            if num_decoded and time.monotonic() - began > exam.budget_s:
                break
            num_decoded += 1
            try:
                samples.finish(row, *samples.load(row))
            except DataError as error:
                bad.append(_without_remedy(error))
    return {"opened": num_opened, "of": len(mine), "wrong": wrong, "decoded": num_decoded, "bad": bad}


def _without_remedy(error: Exception) -> str:
    """The remedy is given once for all samples."""
    text = str(error).removesuffix(REMEDY).rstrip("; ")
    return text.removesuffix(" Then write its shard again.").removesuffix("; write the shards again.")


def judge_shards(exam: Examination, split: str, answers: list[dict[str, Any]]) -> None:
    """Note shards that are missing, cut or exchanged."""
    what = f"{split} shards"
    if any(rank["wrong"] for rank in answers):
        exam.problem(what, by_rank([listed(rank["wrong"]) for rank in answers]), REMEDY)
        return
    opened, of = (sum(rank[name] for rank in answers) for name in ("opened", "of"))
    fact = "sizes and indexes are as the manifest says"
    if opened < of:
        exam.warn(what, f"{fact}; there was time for {opened:,} of {of:,}", "--full reads all")
    else:
        exam.ok(what, fact)


def judge_labels(exam: Examination, split: str, answers: list[dict[str, Any]]) -> None:
    """Note samples that cannot be decoded or have unknown classes."""
    what, num_decoded = f"{split} labels", sum(rank["decoded"] for rank in answers)
    manifest = exam.data[split][1]
    if any(rank["bad"] for rank in answers):
        location = getattr(exam.settings.data, split)
        remedy = f"`python launch/shard_dataset.py verify {location}` names all; write these shards again"
        is_left_blank = split == "train" and exam.settings.data.on_bad_sample == "blank"
        text = by_rank([listed(rank["bad"]) for rank in answers])
        exam.note("warning" if is_left_blank else "problem", what, text, remedy)
    elif num_decoded:
        ignored = manifest.ignored_pixels / max(1, manifest.num_pixels)
        fact = f"{num_decoded} samples decoded, classes in range; {100 * ignored:.1f} % ignored"
        if ignored > 0.5:
            exam.warn(what, fact, "check that the colours of Labels.txt are those of the masks")
        else:
            exam.ok(what, fact)


def _verify(exam: Examination, split: str) -> list[str] | None:
    """On rank 0: all faults, after reading everything."""
    if not exam.world.is_main:
        return None
    found = verify.verify(*exam.data[split], workers=available_cores()).problems
    return [f"{each.where}: {each.kind} ({each.detail})" for each in found]


def judge_classes(exam: Examination) -> None:
    """Note classes that never occur, and label sets that differ."""
    train = exam.data["train"][1]
    names = Palette.from_records(train.palette_records).class_names
    absent = _absent(names, train)
    if absent:
        fact = f"in no training image: {', '.join(absent)}; cannot be learnt"
        remedy = "add images of it, or leave it out with --ignore when you write the shards"
        if train.ignored_pixels and all(record["index"] is not None for record in train.palette_records):
            # Masks of 0 and 255, for example, whose label has another colour: all its pixels are ignored.
            ignored = 100 * train.ignored_pixels / train.num_pixels
            fact += f", and {ignored:.1f} % of all pixels belong to no class"
            remedy = (
                "check that Labels.txt has the colours or ids of the masks (for black-and-white masks: "
                "'0 0 0 NAME' and '255 255 255 NAME'), and write the shards again"
            )
        exam.warn("classes", fact, remedy)
    if "val" not in exam.data:
        if not absent:
            exam.ok("classes", f"all {len(names)} occur in training")
        return
    val = exam.data["val"][1]
    if val.palette_records != train.palette_records:
        remedy = "shard both with the same Labels.txt and the same --ignore"
        exam.problem("classes", "training and validation have different classes", remedy)
        return
    unscored = _absent(names, val)
    only_val = [name for name in absent if name not in unscored]
    if only_val:
        fact = f"only in validation images: {', '.join(only_val)}; counts as 0 in mIoU"
        exam.warn("classes", fact, "split the data again, with this class in both parts")
    if unscored:
        remedy = "mIoU is the mean of the others; split the data again if it matters"
        exam.warn("classes", f"in no validation image: {', '.join(unscored)}", remedy)
    if not absent and not unscored:
        exam.ok("classes", f"all {len(names)} occur in training and in validation")


def _absent(names: tuple[str, ...], manifest: Manifest) -> list[str]:
    return [name for name, pixels in zip(names, manifest.class_pixels, strict=True) if not pixels]


def _check_overlap(exam: Examination) -> None:
    train, val = (exam.data[split][1] for split in ("train", "val"))
    twice = {shard.sha256 for shard in train.shards} & {shard.sha256 for shard in val.shards}
    if twice:
        remedy = "give data.val shards of other images: such scores say nothing"
        exam.problem("train and val", f"{len(twice)} shard(s) are in both", remedy)
        return
    if max(train.num_samples, val.num_samples) > MAX_COMPARED:
        exam.warn("train and val", f"not compared: there are more than {MAX_COMPARED:,} samples")
        return
    if (answers := exam.ask("train and val", lambda: _leaks(exam))) is None:
        return
    if found := answers[0]:
        fact = f"{len(found)} of {val.num_samples:,} validation samples are also in the training set"
        remedy = "scores will be too good; write the shards again, with copies on one side only"
        exam.warn("train and val", f"{fact}: {listed(found)}", remedy)
    else:
        exam.ok("train and val", "no sample is in both")


def _leaks(exam: Examination) -> list[str] | None:
    """On rank 0: validation samples that are in the training set too, byte for byte."""
    if not exam.world.is_main:
        return None
    train, val = (open_reader(exam.settings.data, *exam.data[split]) for split in ("train", "val"))
    found = []
    with suppress(DataError, OSError):  # lost and damaged shards are found by other checks
        # Checksums in the indexes name the candidates, so that only these are read.
        rows = {row: number for number, row in enumerate(train.checksums())}
        for number, row in enumerate(val.checksums()):
            twin = rows.get(row)
            if twin is not None and train.read(twin) == val.read(number):
                found.append(f"{val.source(number)} is {train.source(twin)}")
    return found
