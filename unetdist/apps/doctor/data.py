"""Checks of the shards: they match their manifest, and their classes can be learnt and scored."""

import os
import random
import time
from functools import partial
from itertools import accumulate
from typing import Any

from rich.filesize import decimal as size

from unetdist.apps.doctor.examination import Examination, Level, by_rank, describe, listed
from unetdist.data.labels import Palette
from unetdist.data.loader import open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.open_shard import REMEDY
from unetdist.data.samples import Samples
from unetdist.distributed.hardware import num_cores
from unetdist.errors import DataError, UnetdistError
from unetdist.sharding.verify import verify
from unetdist.storage.folders import Folder

NAMES = {"train": "training set", "val": "validation set"}

# Samples of a data set that each rank decodes, if time allows.
MAX_DECODED = 64

# Samples whose checksums fit in memory easily.
MAX_COMPARED = 5_000_000


def check_data(exam: Examination) -> None:
    """Collective. Both data sets by themselves, then side by side."""
    cfg = exam.config.data
    for split in ("train", "val"):
        if getattr(cfg, split) is not None:
            _check_split(exam, split)
    if cfg.val is None:
        fact = "none: no mIoU will be measured, and the last weights are kept instead of the best"
        exam.note("warning", "validation set", fact, "--data.val SHARDS")
    if "train" in exam.data:
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
    if not is_same:
        return
    exam.data[split] = opened[0]
    if (answers := exam.ask(f"{split} shards", partial(read_some, exam, split))) is not None:
        judge_shards(exam, split, answers)
        judge_labels(exam, split, answers)
    if exam.full:
        exam.ask_main(f"all of {split}", lambda: read_all(*opened[0]))


def read_some(exam: Examination, split: str) -> dict[str, Any]:
    """Open this rank's part of the shards on its machine, and decode some of their samples."""
    folder, manifest = exam.data[split]
    reader = open_reader(exam.config.data, folder, manifest)
    samples = Samples(reader, channels=exam.config.model.in_channels, num_classes=manifest.num_classes)
    ends = list(accumulate(manifest.shard_sizes))
    # Each machine may have its own copy, so its ranks look at all shards together.
    mine = list(range(int(os.environ.get("LOCAL_RANK", 0)), len(ends), exam.world.local_world_size))
    random.Random(0).shuffle(mine)
    began = time.monotonic()
    wrong: list[str] = []
    bad: list[str] = []
    num_opened = num_decoded = 0
    for number in mine:
        if num_opened and not exam.full and time.monotonic() - began > 4 * exam.budget_s:
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
            if num_decoded and time.monotonic() - began > exam.budget_s:
                break
            num_decoded += 1
            try:
                samples.finish(row, *samples.load(row))
            except DataError as error:
                bad.append(_fact_of(error))
    return {"opened": num_opened, "of": len(mine), "wrong": wrong, "decoded": num_decoded, "bad": bad}


def _fact_of(error: Exception) -> str:
    """The error without its remedy, which the finding gives once for all samples."""
    return describe(error).partition("; ")[0]


def judge_shards(exam: Examination, split: str, answers: list[dict[str, Any]]) -> None:
    """Note shards that are missing, cut or exchanged."""
    what = f"{split} shards"
    if any(rank["wrong"] for rank in answers):
        exam.note("problem", what, by_rank([listed(rank["wrong"]) for rank in answers]), REMEDY)
        return
    opened, of = (sum(rank[name] for rank in answers) for name in ("opened", "of"))
    fact = f"sizes and indexes of {opened:,} of {of:,} are as the manifest says"
    exam.note("warning" if opened < of else "ok", what, fact, "--full reads all")


def judge_labels(exam: Examination, split: str, answers: list[dict[str, Any]]) -> None:
    """Note samples that cannot be decoded or have unknown classes."""
    what, num_decoded = f"{split} labels", sum(rank["decoded"] for rank in answers)
    cfg, manifest = exam.config.data, exam.data[split][1]
    if any(rank["bad"] for rank in answers):
        remedy = f"`python launch/shard_dataset.py verify {getattr(cfg, split)}` names all; write these shards again"
        is_left_blank = split == "train" and cfg.on_bad_sample == "blank"
        text = by_rank([listed(rank["bad"]) for rank in answers])
        exam.note("warning" if is_left_blank else "problem", what, text, remedy)
    elif num_decoded:
        ignored = manifest.ignored_pixels / max(1, manifest.num_pixels)
        fact = f"{num_decoded} samples decoded, classes in range; {100 * ignored:.1f} % ignored"
        remedy = "check that the colours of Labels.txt are those of the masks"
        exam.note("warning" if ignored > 0.5 else "ok", what, fact, remedy)


def read_all(folder: Folder, manifest: Manifest) -> tuple[Level, str, str]:
    """Compare every sample with the manifest."""
    problems = verify(folder, manifest, workers=num_cores()).problems
    found = [f"{each.where}: {each.kind} ({each.detail})" for each in problems]
    fact = listed(found) or f"all {manifest.num_samples:,} samples are as the manifest says"
    return "problem" if found else "ok", fact, REMEDY


def judge_classes(exam: Examination) -> None:
    """Note classes that never occur, and label sets that differ."""
    train, val = exam.data["train"][1], exam.data.get("val", (None, None))[1]
    if val is not None and val.palette_records != train.palette_records:
        remedy = "shard both with the same Labels.txt and the same --ignore"
        exam.note("problem", "classes", "training and validation have different classes", remedy)
        return
    unlearnt, unscored = _absent(train), _absent(val)
    if unlearnt:
        fact = f"in no training image: {', '.join(unlearnt)}; cannot be learnt"
        remedy = "add images of it, or leave it out with --ignore when you write the shards"
        exam.note("warning", "classes", fact, f"{remedy}; Labels.txt must have the colours or ids of the masks")
    if unscored:
        remedy = "mIoU is the mean of the others; split the data again if it matters"
        exam.note("warning", "classes", f"in no validation image: {', '.join(unscored)}", remedy)
    if not unlearnt and not unscored:
        exam.note("ok", "classes", f"each of the {train.num_classes} occurs{' in both sets' if val else ''}")


def _absent(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    names = Palette.from_records(manifest.palette_records).class_names
    return [name for name, pixels in zip(names, manifest.class_pixels, strict=True) if not pixels]


def find_overlap(exam: Examination) -> tuple[Level, str, str]:
    """Find validation samples that are in the training set too, byte for byte."""
    num_samples = max(manifest.num_samples for _, manifest in exam.data.values())
    if num_samples > MAX_COMPARED:
        return "warning", f"not compared: there are more than {MAX_COMPARED:,} samples", ""
    train, val = (open_reader(exam.config.data, *exam.data[split]) for split in ("train", "val"))
    found = []
    try:
        # Checksums in the indexes name the candidates, so that only these are read.
        twins = {checksum: sample_id for sample_id, checksum in enumerate(train.checksums())}
        for sample_id, checksum in enumerate(val.checksums()):
            twin = twins.get(checksum)
            if twin is not None and train.read(twin) == val.read(sample_id):
                found.append(f"{val.source(sample_id)} is {train.source(twin)}")
    except (DataError, OSError) as error:
        return "warning", f"not compared: {_fact_of(error)}", "fix the shards first"
    if not found:
        return "ok", "no sample is in both", ""
    fact = f"{len(found):,} of {val.manifest.num_samples:,} validation samples are also in the training set"
    remedy = "scores will be too good; write the shards again, with copies on one side only"
    return "problem" if len(found) > val.manifest.num_samples / 2 else "warning", f"{fact}: {listed(found)}", remedy
