"""The shards: there on every rank, what their manifest says, with classes to learn from."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from unetdist.apps.doctor import contents
from unetdist.apps.doctor.case import Case
from unetdist.apps.doctor.examination import GO, Check
from unetdist.apps.doctor.findings import Finding, by_rank, listed, ok, problem, size, warning
from unetdist.data.labels import Palette
from unetdist.data.loader import open_data, open_reader
from unetdist.data.manifest import Manifest
from unetdist.data.open_shard import REMEDY
from unetdist.data.reader import ShardReader
from unetdist.errors import UnetdistError

GROUP = "data"
NAMES = {"train": "training set", "val": "validation set"}


def location_of(case: Case, split: str) -> str | None:
    """What the settings say: where the shards of "train" or "val" are."""
    location: str | None = getattr(case.settings.data, split)
    return location


def open_split(case: Case, split: str) -> dict[str, Any]:
    """What the manifest says, as this rank sees it."""
    location = location_of(case, split)
    assert location is not None
    folder, manifest = open_data(case.settings.data, location)
    case.data[split] = folder, manifest
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    return {
        "fingerprint": manifest.fingerprint,
        "text": f"{manifest.num_samples:,} samples in {shards}, {size(num_bytes)}, "
        f"{manifest.num_classes} classes; {folder}",
    }


def judge_open(_: Case, ranks: list[dict[str, Any]], split: str) -> Iterator[Finding]:
    """The same data on every rank."""
    text = by_rank([rank["text"] for rank in ranks])
    if len({rank["fingerprint"] for rank in ranks}) > 1:
        yield problem(
            NAMES[split], f"not the same on all ranks: {text}", "copy the same shards to all machines"
        )
    else:
        yield ok(NAMES[split], text)


def sizes(case: Case, split: str) -> dict[str, Any]:
    """Sizes of shards and hashes of their indexes beside the manifest: this rank's part of those of its machine."""
    folder, manifest = case.data[split]
    reader = open_reader(case.settings.data, folder, manifest)
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), case.world.local_world_size
    mine = range(local_rank, len(manifest.shards), local_size)
    deadline = time.monotonic() + 4 * case.budget_s
    wrong, checked = [], 0
    for number in mine:
        if checked and not case.full and time.monotonic() > deadline:
            break
        checked += 1
        try:
            one = ShardReader(folder, replace_shards(manifest, number), cache=reader.cache)
            one.read(0)
        except (UnetdistError, OSError) as error:
            wrong.append(one.source(0) if isinstance(error, OSError) else _short(error))
    return {"checked": checked, "of": len(mine), "wrong": wrong}


def replace_shards(manifest: Manifest, *numbers: int) -> Manifest:
    """The manifest of some of the shards."""
    shards = tuple(manifest.shards[number] for number in numbers)
    return replace(manifest, shards=shards, num_samples=sum(shard.num_samples for shard in shards))


def _short(error: Exception) -> str:
    """The remedy is said once for all."""
    return str(error).removesuffix(REMEDY).rstrip("; ")


def judge_sizes(case: Case, ranks: list[dict[str, Any]], split: str) -> Iterator[Finding]:
    """Each shard there, of its size, with its index."""
    what = f"{split} shards"
    if any(rank["wrong"] for rank in ranks):
        yield problem(what, by_rank([listed(rank["wrong"]) for rank in ranks]), REMEDY)
        return
    checked, of = (sum(rank[name] for rank in ranks) for name in ("checked", "of"))
    fact = "each has the size, and its index the hash, of the manifest"
    if checked < of:
        yield warning(
            what, f"{fact}, of the {checked:,} of {of:,} that there was time for", "--full looks at all"
        )
    else:
        yield ok(what, fact)


def classes(_: Case) -> None:
    """Nothing: the manifests say it."""


def judge_classes(case: Case, _: list[None]) -> Iterator[Finding]:
    """Each class in both sets, the same classes, and no shard in both."""
    train = case.data["train"][1]
    names = Palette.from_records(train.palette_records).class_names
    absent = [name for name, pixels in zip(names, train.class_pixels, strict=True) if not pixels]
    if absent:
        fact = f"in no training picture: {', '.join(absent)}; cannot be learnt"
        remedy = "add pictures of it, or leave it out by --ignore when the shards are written"
        if train.ignored_pixels and all(record["index"] is not None for record in train.palette_records):
            fact += (
                f", and {100 * train.ignored_pixels / train.num_pixels:.1f} % of all pixels are in no class"
            )
            remedy = (
                "see that Labels.txt has the colours or ids that the masks have (for masks of black and white: "
                "'0 0 0 NAME' and '255 255 255 NAME'), and write the shards again"
            )
        yield warning("classes", fact, remedy)
    if "val" not in case.data:
        if not absent:
            yield ok("classes", f"all {len(names)} in the training set")
        return
    val = case.data["val"][1]
    if val.palette_records != train.palette_records:
        remedy = "shard both with the same Labels.txt and the same --ignore"
        yield problem("classes", "training and validation have other classes", remedy)
        return
    unscored = [name for name, pixels in zip(names, val.class_pixels, strict=True) if not pixels]
    only_val = [name for name in absent if name not in unscored]
    if only_val:
        fact = f"in validation pictures alone: {', '.join(only_val)}; counts 0 in mIoU"
        yield warning("classes", fact, "split the data anew, with this class in both parts")
    if unscored:
        remedy = "mIoU is the mean of the others; split the data anew if it matters"
        yield warning("classes", f"in no validation picture: {', '.join(unscored)}", remedy)
    if not absent and not unscored:
        yield ok("classes", f"all {len(names)} in training and in validation")
    twice = {shard.sha256 for shard in train.shards} & {shard.sha256 for shard in val.shards}
    if twice:
        remedy = "give data.val shards of other pictures: such scores say nothing"
        yield problem(
            "split", f"{len(twice)} shard(s) are in both the training and the validation set", remedy
        )


def _if_given(case: Case, split: str) -> str | None:
    if case.config is None or location_of(case, split) is None:
        return ""
    return GO


def _if_open(case: Case, split: str = "train") -> str | None:
    return GO if split in case.data else ""


def _if_both_open(case: Case) -> str | None:
    is_same = case.config is not None and location_of(case, "train") == location_of(case, "val")
    return GO if {"train", "val"} <= case.data.keys() and not is_same else ""


def _if_full(case: Case, split: str) -> str | None:
    return _if_open(case, split) if case.full else ""


def no_validation(case: Case) -> str | None:
    """Where no validation is wanted, that is told."""
    return GO if case.config is not None and case.config.data.val is None else ""


def judge_no_validation(_: Case, __: list[None]) -> Iterator[Finding]:
    """Nobody will know how good the network is."""
    fact = "none: no mIoU will be measured, and the last weights are kept, not the best"
    yield warning("validation set", fact, "--data.val SHARDS")


def _of(split: str) -> Iterator[Check]:
    def check(what: str, measure: Any, judge: Any, why_not: Any) -> Check:
        return Check(
            group=GROUP,
            what=what,
            measure=partial(measure, split=split),
            judge=partial(judge, split=split),
            why_not=partial(why_not, split=split),
        )

    yield check(NAMES[split], open_split, judge_open, _if_given)
    yield check(f"{split} shards", sizes, judge_sizes, _if_open)
    yield check(f"{split} labels", contents.decode, contents.judge_decoded, _if_open)
    yield check(f"all of {split}", contents.read_all, contents.judge_all, _if_full)


CHECKS = (
    *_of("train"),
    *_of("val"),
    Check(
        group=GROUP, what="validation set", measure=classes, judge=judge_no_validation, why_not=no_validation
    ),
    Check(group=GROUP, what="classes", measure=classes, judge=judge_classes, why_not=_if_open),
    Check(
        group=GROUP,
        what="train and val",
        measure=contents.leaks,
        judge=contents.judge_leaks,
        why_not=_if_both_open,
    ),
    Check(group=GROUP, what="reading", measure=contents.speed, judge=contents.judge_speed, why_not=_if_open),
)
