"""What the order promises, over every option together: against lists spelt out by hand, and through the real loader."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.small_shards import NUM_CLASSES, write_small_shards
from unetdist.data.config import AugmentConfig, DataConfig
from unetdist.data.keyed_random import Stream, keyed_permutation
from unetdist.data.loader import train_loader
from unetdist.data.manifest import Manifest
from unetdist.data.order import Order

quick = settings(deadline=None, max_examples=40)


class Case(NamedTuple):
    """A data set, how it is ordered, and who takes how much of it from where on."""

    sizes: list[int]
    seed: int
    lanes: int
    window: int
    world_size: int
    micro_batch_size: int
    accumulation: int
    first: int

    @property
    def batch(self):
        return self.world_size * self.micro_batch_size * self.accumulation

    @property
    def order(self):
        return Order(self.sizes, seed=self.seed, lanes=self.lanes, window=self.window)


def cases(most_samples=30, most_shards=12, worlds=(1, 2, 3, 4, 5, 8)):
    return st.builds(
        Case,
        sizes=st.lists(st.integers(0, most_samples), min_size=1, max_size=most_shards).filter(any),
        seed=st.integers(0, 2**63),
        lanes=st.integers(1, 20),
        window=st.integers(1, 40),
        world_size=st.sampled_from(worlds),
        micro_batch_size=st.integers(1, 4),
        accumulation=st.integers(1, 3),
        first=st.integers(0, 400),
    )


def epoch_by_hand(case, epoch):
    """(epoch, lane, sample id) by position: shards end to end, cut into lanes, windows shuffled, lanes dealt."""
    first_ids = np.cumsum([0, *case.sizes])
    row = []
    for shard in keyed_permutation(len(case.sizes), Stream.SHARDS, case.seed, epoch):
        row += range(first_ids[shard], first_ids[shard + 1])
    num_lanes = 1 if len(row) <= case.window else case.lanes
    short, longer = divmod(len(row), num_lanes)
    columns = []
    for lane in range(num_lanes):
        length = short + (lane < longer)
        part, row = row[:length], row[length:]
        column = []
        for number, at in enumerate(range(0, length, case.window)):
            piece = part[at : at + case.window]
            key = (Stream.WINDOWS, case.seed, epoch, lane, number)
            column += [(epoch, lane, piece[k]) for k in keyed_permutation(len(piece), *key)]
        columns.append(column)
    dealt = itertools.zip_longest(*columns)
    return [place for places in dealt for place in places if place is not None]


def by_hand(case, end):
    """(epoch, lane, sample id) of the positions case.first .. end."""
    epochs = [epoch_by_hand(case, epoch) for epoch in range(-(-end // sum(case.sizes)))]
    return list(itertools.chain(*epochs))[case.first : end]


def steps_by_hand(case, num_steps):
    """Per step its (epoch, sample id), lane by lane."""
    places = by_hand(case, case.first + num_steps * case.batch)
    steps = [places[at : at + case.batch] for at in range(0, len(places), case.batch)]
    return [[(epoch, number) for epoch, _, number in sorted(step, key=lambda place: place[1])] for step in steps]


def steps_of(case, num_steps, rank=0, world_size=1):
    """Per step what `rank_slice` gives one rank."""
    starts = range(case.first, case.first + num_steps * case.batch, case.batch)
    slices = [case.order.rank_slice(first, case.batch, rank, world_size) for first in starts]
    return [list(zip(epoch.tolist(), number.tolist(), strict=True)) for epoch, number in slices]


@quick
@given(cases())
def test_a_look_up_is_what_lists_give(case):
    end = case.first + 2 * sum(case.sizes)
    positions = np.arange(case.first, end)
    epoch, number = case.order.locate(positions)
    _, _, lane = case.order._rows(positions)
    assert list(zip(epoch.tolist(), lane.tolist(), number.tolist(), strict=True)) == by_hand(case, end)


@quick
@given(cases(), st.integers(1, 6))
def test_every_world_size_takes_the_same_slots_of_the_same_steps(case, num_steps):
    expected = steps_by_hand(case, num_steps)
    for world_size in {1, case.world_size}:
        ranks = [steps_of(case, num_steps, rank, world_size) for rank in range(world_size)]
        assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == expected


@quick
@given(cases())
def test_each_sample_is_taken_once_in_each_epoch(case):
    """Counted over all ranks, from the first sample to the end of the third epoch."""
    case = case._replace(first=0)
    num_samples = sum(case.sizes)
    num_steps = -(-3 * num_samples // case.batch)
    ranks = [steps_of(case, num_steps, rank, case.world_size) for rank in range(case.world_size)]
    taken = Counter(itertools.chain(*itertools.chain(*ranks)))
    assert set(taken.values()) == {1}
    for epoch in range(3):
        assert {number for of, number in taken if of == epoch} == set(range(num_samples))


@quick
@given(cases(), st.integers(0, 5), st.integers(1, 4), st.sampled_from([1, 2, 3, 4]))
def test_resuming_at_any_step_is_continuing_on_any_number_of_processes(case, before, after, world_size):
    whole = steps_of(case, before + after)
    later = case._replace(first=case.first + before * case.batch)
    if case.batch % world_size:
        world_size = case.world_size
    ranks = [steps_of(later, after, rank, world_size) for rank in range(world_size)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == whole[before:]


def steps_of_loader(case, folder, num_steps, rank, num_workers=0):
    """Per step the ids that the trainer of a rank gets; each picture is looked at, its first pixel tells its id."""
    cfg = DataConfig(train=str(folder), num_workers=num_workers, lanes=case.lanes, window=case.window)
    loader = train_loader(
        cfg,
        AugmentConfig(),
        Manifest.load(folder),
        folder,
        seed=case.seed,
        channels=3,
        num_classes=NUM_CLASSES,
        global_batch_size=case.batch,
        micro_batch_size=case.micro_batch_size,
        rank=rank,
        world_size=case.world_size,
        from_sample=case.first,
    )
    steps = []
    for step in itertools.islice(loader, num_steps):
        assert [len(batch) for batch in step] == [case.micro_batch_size] * case.accumulation
        for batch in step:
            assert batch.image[:, 0, 0, 0].tolist() == [number % 256 for number in batch.ids.tolist()]
        steps.append([number for batch in step for number in batch.ids.tolist()])
    return steps


def assert_loader_gives_the_steps(case, folder, num_steps, num_workers=0):
    write_small_shards(folder, case.sizes)
    ranks = [steps_of_loader(case, folder, num_steps, rank, num_workers) for rank in range(case.world_size)]
    expected = [[number for _, number in step] for step in steps_by_hand(case, num_steps)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == expected


@settings(quick, max_examples=15)
@given(cases(most_samples=6, most_shards=5, worlds=(1, 2, 3)), st.integers(1, 3))
def test_the_trainer_gets_what_lists_give(case, num_steps):
    with tempfile.TemporaryDirectory() as folder:
        assert_loader_gives_the_steps(case, Path(folder), num_steps)


def pixels_of_loader(case, folder, augment, native_from, num_steps, rank=0, num_workers=0):
    """Per step, what each sample is: id, image, mask and counts, whichever micro-batch it lies in."""
    loader = train_loader(
        DataConfig(train=str(folder), num_workers=num_workers, lanes=case.lanes, window=case.window),
        augment,
        Manifest.load(folder),
        folder,
        seed=case.seed,
        channels=3,
        num_classes=NUM_CLASSES,
        global_batch_size=case.batch,
        micro_batch_size=case.micro_batch_size,
        rank=rank,
        world_size=case.world_size,
        from_sample=case.first,
        native_from=native_from,
    )
    names = ("ids", "image", "mask", "class_pixels")
    return [
        [
            tuple(getattr(batch, name)[k].numpy().tobytes() for name in names)
            for batch in step
            for k in range(len(batch))
        ]
        for step in itertools.islice(loader, num_steps)
    ]


@settings(quick, max_examples=15)
@given(
    case=cases(most_samples=6, most_shards=5, worlds=(1, 2, 3)),
    before=st.integers(0, 2),
    shares=st.sampled_from([(1, 0), (0, 1), (0.5, 0.5), (0.3, 0.3)]),
    native_from=st.sampled_from([None, 1, 5]),
)
def test_mixed_samples_are_the_same_for_any_processes_micro_batch_and_resume(case, before, shares, native_from):
    """Against one process that has the whole step in one batch, and began `before` steps earlier."""
    augment = AugmentConfig(crop_size=(7, 9), scale_min=0.7, scale_max=1.4, cutmix=shares[0], classmix=shares[1])
    case = case._replace(first=case.first + before * case.batch)
    one = case._replace(
        first=case.first - before * case.batch, world_size=1, micro_batch_size=case.batch, accumulation=1
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_shards(folder, case.sizes)
        whole = pixels_of_loader(one, folder, augment, native_from, before + 2)
        ranks = [pixels_of_loader(case, folder, augment, native_from, 2, rank) for rank in range(case.world_size)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == whole[before:]


@pytest.mark.parametrize(
    ("num_workers", "case"),
    [
        (1, Case([4, 0, 5, 2], 5, lanes=3, window=4, world_size=2, micro_batch_size=1, accumulation=3, first=7)),
        (2, Case([7, 1, 9], 7, lanes=4, window=3, world_size=1, micro_batch_size=4, accumulation=1, first=3)),
    ],
)
def test_the_trainer_gets_what_lists_give_from_workers(num_workers, case, tmp_path):
    assert_loader_gives_the_steps(case, tmp_path, 5, num_workers)
