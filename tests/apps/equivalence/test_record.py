"""What a run writes of its steps: equal runs compare equal, and each thing that can differ is seen where it begins."""

import math

import pytest
import torch

from tests.apps.equivalence.runs import STEPS, record_of, values_of, write_data
from unetdist.apps.equivalence import record
from unetdist.apps.equivalence.compare import Record, RunComparison, compare
from unetdist.apps.equivalence.record import RecordTask
from unetdist.apps.equivalence.worlds import broken_by
from unetdist.cli import settings
from unetdist.data.augment import Augmenter
from unetdist.train.config import Config
from unetdist.train.step import TrainStep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equivalence")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder) -> Record:
    return record_of(folder, "reference", 1)


@pytest.fixture(scope="module")
def nudged(folder, reference) -> Record:
    return record_of(folder, "nudged", 1, reference="reference", is_nudged=True)


def test_two_processes_with_accumulation_and_averages_train_what_one_does(folder):
    sections = {"trainer": {"micro_batch_size": 2, "ema_decay": 0.9}}
    one = record_of(folder, "one_averaged", 1, **sections)
    noise = record_of(folder, "noise_averaged", 1, reference="one_averaged", is_nudged=True, **sections)
    two = record_of(folder, "two_averaged", 2, reference="one_averaged", **sections)
    assert compare(one, two, noise, float64=True).is_equal
    assert any(name.startswith("ema.") for line in noise for name in line["differences"])
    assert [line["step"] for line in two] == list(range(STEPS + 1))
    assert [len(line["samples"]) for line in two] == [0] + [8] * STEPS
    assert all(math.isfinite(line["train/loss"]) for line in two[1:])


def test_a_repeat_is_equal_bit_by_bit(folder, reference, nudged):
    again = record_of(folder, "again", 1, reference="reference")
    for run, is_exact in ((again, True), (nudged, False)):
        largest = compare(reference, run, nudged, float64=True).largest
        assert (not any(difference.amount for difference in largest.values())) is is_exact


def test_a_nudge_moves_weights_by_their_last_digit(nudged):
    before_training = nudged[0]["differences"]
    assert 0 < max(before_training.values()) <= 2 * torch.finfo(torch.float64).eps


def mean_of_means(task: RecordTask) -> None:
    """Train with the loss as the mean over processes of their means."""

    def denominators_of_this_rank(step, batches):
        pixels = torch.cat([batch.class_pixels for batch in batches])
        return step.model_with_loss.loss.denominators(pixels) * step.world.world_size

    TrainStep.global_denominators = denominators_of_this_rank
    record.run(task)


def beside(reference: Record, other: Record, noise: Record) -> RunComparison:
    comparison = compare(reference, other, noise, float64=True)
    assert not comparison.is_equal
    return comparison


def test_a_wrong_gradient_is_seen_in_the_first_step_and_its_tensor_named(folder, reference, nudged):
    other = record_of(folder, "mean_of_means", 2, reference="reference", train=mean_of_means)
    comparison = beside(reference, other, nudged)
    assert {what: first.step for what, first in comparison.first.items()} == dict.fromkeys(
        ("loss", "gradient", "weights"), 1
    )
    assert comparison.first["weights"].where in other[1]["differences"]
    assert comparison.other_samples is None
    assert comparison.ranks_part is None


def test_a_wrong_gradient_shows_in_float32_too(folder):
    one = record_of(folder, "single", 1, float64=False)
    noise = record_of(folder, "single_nudged", 1, reference="single", is_nudged=True, float64=False)
    two = record_of(folder, "single_two", 2, reference="single", float64=False)
    wrong = record_of(folder, "single_wrong", 2, reference="single", float64=False, train=mean_of_means)
    assert compare(one, two, noise, float64=False).is_equal
    assert compare(one, wrong, noise, float64=False).first["gradient"].step == 1


def part_at_step_3(task: RecordTask) -> None:
    """Train with a weight that one process alone changes in step 3."""
    train_step = TrainStep.__call__

    def step_and_part(step, micro_batches, number):
        grad_norm = train_step(step, micro_batches, number)
        if number == 2 and step.world.rank == 1:
            next(step.model.parameters()).data.add_(1e-9)
        return grad_norm

    TrainStep.__call__ = step_and_part
    record.run(task)


def test_processes_that_part_are_told_from_the_step_on(folder, reference, nudged):
    other = record_of(folder, "parted", 2, reference="reference", train=part_at_step_3)
    assert beside(reference, other, nudged).ranks_part == 3


def same_augmentation(task: RecordTask) -> None:
    """Train on the same samples, each of which is augmented as sample 0 is."""
    draws = Augmenter.draws
    Augmenter.draws = lambda augmenter, keys: draws(augmenter, [(epoch, 0) for epoch, _ in keys])
    record.run(task)


def test_other_pixels_of_the_same_samples_are_other_samples(folder, reference, nudged):
    other = record_of(folder, "other_pixels", 1, reference="reference", train=same_augmentation)
    assert beside(reference, other, nudged).other_samples == 1
    ids = [[[sample_id for sample_id, _ in line["samples"]] for line in lines] for lines in (reference, other)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    "sections", [{"model": {"norm": "batch"}}, {"model": {"dropout": 0.5}}], ids=["batch norm", "dropout"]
)
def test_what_is_not_promised_does_differ(folder, sections):
    """Else the promise would be too small."""
    name = "_".join(sections["model"])
    one = record_of(folder, name, 1, **sections)
    noise = record_of(folder, f"{name}_nudged", 1, reference=name, is_nudged=True, **sections)
    two = record_of(folder, f"{name}_two", 2, reference=name, **sections)
    comparison = beside(one, two, noise)
    assert comparison.other_samples is None
    assert comparison.ranks_part is None
    assert broken_by(settings.from_mapping(Config, values_of(folder, **sections)), (1, 2))
