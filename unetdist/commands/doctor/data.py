"""Checks of the shards: they match their manifest, and their classes can be learnt and scored."""

import os
import random
import time
from functools import partial
from itertools import accumulate
from typing import Any

from rich.filesize import decimal as size

from unetdist.cli.commands import typed
from unetdist.commands.doctor.examination import Examination, Level, by_rank, describe, listed
from unetdist.data.labels import Palette
from unetdist.data.loader import open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.open_shard import REMEDY
from unetdist.data.samples import Samples
from unetdist.errors import DataError, UnetdistError
from unetdist.storage.folders import Folder

NAMES = {"train": "training set", "val": "validation set"}

# Rough number of samples of a data set that each rank decodes, if time allows.
MAX_DECODED = 64


def check_data(exam: Examination) -> None:
    """Collective. Both data sets by themselves, then side by side."""
    cfg = exam.config.data
    for split in ("train", "val"):
        if getattr(cfg, split) is not None:
            _check_split(exam, split)
    if cfg.val is None:
        fact = "none: no mIoU will be measured, and the last weights are kept instead of the best"
        exam.note("warning", "validation set", fact, "--data.val SHARDS")
    judge_classes(exam)
    if len(exam.data) == 2 and cfg.train != cfg.val:
        exam.ask_main("train and val", lambda: find_overlap(exam))


def _check_split(exam: Examination, split: str) -> None:
    opened: list[tuple[Folder, Manifest]] = []

    def open_it() -> tuple[str, str]:
        folder, manifest = open_data(exam.config.data, getattr(exam.config.data, split))
        opened.append((folder, manifest))
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        text = f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shard(s), {size(num_bytes)}"
        return manifest.fingerprint, f"{text}, {manifest.num_classes} classes; {folder}"

    if (answers := exam.ask(NAMES[split], open_it)) is None:
        return
    is_same = len({fingerprint for fingerprint, _ in answers}) == 1
    fact = ("" if is_same else "differs between ranks: ") + by_rank([text for _, text in answers])
    exam.note("ok" if is_same else "problem", NAMES[split], fact, "copy the same shards to all machines")
    if is_same:
        exam.data[split] = opened[0]
        if (answers := exam.ask(f"{split} shards", partial(read_some, exam, split))) is not None:
            judge_samples(exam, split, answers)


def read_some(exam: Examination, split: str) -> dict[str, Any]:
    """Open this rank's part of the shards on its machine, and decode some of their samples."""
    folder, manifest = exam.data[split]
    reader = open_reader(exam.config.data, folder, manifest)
    samples = Samples(reader, channels=exam.config.model.in_channels, num_classes=manifest.num_classes)
    ends = list(accumulate(manifest.shard_sizes))
    # Each machine may have its own copy, so its ranks look at all shards together.
    mine = list(range(int(os.environ.get("LOCAL_RANK", 0)), len(ends), exam.world.local_world_size))
    # If time ends this early, the part that was read should stand for all.
    random.Random(0).shuffle(mine)
    began = time.monotonic()
    wrong: list[str] = []
    bad: list[str] = []
    num_opened = num_decoded = 0
    for number in mine:
        if num_opened and time.monotonic() - began > exam.budget_s:
            break
        num_opened += 1
        num_samples = manifest.shards[number].num_samples
        first = ends[number] - num_samples
        try:
            # Opening a shard compares its size and the hash of its index with the manifest.
            reader.read(first)
        except (UnetdistError, OSError) as error:
            wrong.append(_fact_of(error))
            continue
        for row in range(first, ends[number], max(1, num_samples * len(mine) // MAX_DECODED)):
            num_decoded += 1
            try:
                samples.finish(row, *samples.load(row))
            except DataError as error:
                bad.append(_fact_of(error))
    return {"opened": num_opened, "of": len(mine), "wrong": wrong, "decoded": num_decoded, "bad": bad}


def _fact_of(error: Exception) -> str:
    """The error without its remedy, which the finding gives once for all samples."""
    return describe(error).partition("; ")[0]


def judge_samples(exam: Examination, split: str, answers: list[dict[str, Any]]) -> None:
    """Note shards that are missing, cut or exchanged, and samples that cannot be decoded or have unknown classes."""
    opened, of, decoded = (sum(rank[name] for rank in answers) for name in ("opened", "of", "decoded"))
    cfg, manifest = exam.config.data, exam.data[split][1]
    verify = f"`{typed('shard')} verify {getattr(cfg, split)}`"
    if any(rank["wrong"] for rank in answers):
        exam.note("problem", f"{split} shards", by_rank([listed(rank["wrong"]) for rank in answers]), REMEDY)
        return
    fact = f"sizes and indexes of {opened:,} of {of:,} are as the manifest says"
    exam.note("warning" if opened < of else "ok", f"{split} shards", fact, f"{verify} reads all")
    if any(rank["bad"] for rank in answers):
        is_left_blank = split == "train" and cfg.on_bad_sample == "blank"
        fact = by_rank([listed(rank["bad"]) for rank in answers])
        remedy = f"{verify} names all; write these shards again"
        exam.note("warning" if is_left_blank else "problem", f"{split} labels", fact, remedy)
    elif decoded:
        ignored = manifest.ignored_pixels / max(1, manifest.num_pixels)
        fact = f"{decoded} samples decoded, classes in range; {100 * ignored:.1f} % ignored"
        remedy = "check that the colours of Labels.txt are those of the masks"
        exam.note("warning" if ignored > 0.5 else "ok", f"{split} labels", fact, remedy)


def judge_classes(exam: Examination) -> None:
    """Note classes that never occur."""
    remedies = {
        "train": "add images of it, or leave it out with --ignore when you write the shards",
        "val": "mIoU is the mean of the others; split the data again if it matters",
    }
    for split, (_, manifest) in exam.data.items():
        names = Palette.from_records(manifest.palette_records).class_names
        absent = [name for name, pixels in zip(names, manifest.class_pixels, strict=True) if not pixels]
        fact = f"in no image: {', '.join(absent)}" if absent else f"each of the {len(names)} occurs"
        exam.note("warning" if absent else "ok", f"{split} classes", fact, remedies[split])


def find_overlap(exam: Examination) -> tuple[Level, str, str]:
    """Find validation samples that are in the training set too, byte for byte."""
    train, val = (open_reader(exam.config.data, *exam.data[split]) for split in ("train", "val"))
    found = []
    try:
        # Checksums in the indexes name the candidates, so that only these are read. Those of a large training set
        # would fill the memory.
        wanted = set(val.checksums())
        twins = {checksum: row for row, checksum in enumerate(train.checksums()) if checksum in wanted}
        for row, checksum in enumerate(val.checksums()):
            twin = twins.get(checksum)
            if twin is not None and train.read(twin) == val.read(row):
                found.append(f"{val.source(row)} is {train.source(twin)}")
    except (DataError, OSError) as error:
        return "warning", f"not compared: {_fact_of(error)}", "fix the shards first"
    if not found:
        return "ok", "no sample is in both", ""
    fact = f"{len(found):,} of {val.manifest.num_samples:,} validation samples are also in the training set"
    remedy = "scores will be too good; write the shards again, with copies on one side only"
    return "problem" if len(found) > val.manifest.num_samples / 2 else "warning", f"{fact}: {listed(found)}", remedy
