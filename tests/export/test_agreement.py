import pytest
import torch

from tests.export.models import picture, saved_model
from unetdist.export.agreement import Agreement, compare, milliseconds


@pytest.fixture
def trained():
    return saved_model().model


def held(trained, exported, precision="fp32", **settings):
    pictures = [picture(index, **settings) for index in range(2)]
    return compare(trained, exported, pictures, precision=precision)


def test_a_model_agrees_with_itself_at_three_sizes(trained):
    rows = held(trained, trained)
    assert [(row.label, row.num_images, row.num_pixels) for row in rows] == [
        ("own size", 2, 2 * 24 * 32),
        ("odd parts", 4, 4 * 13 * 21),
        ("1.5 times", 2, 2 * 36 * 48),
    ]
    for row in rows:
        assert (row.num_other, row.largest) == (0, 0)
        assert row.trained.equal(row.exported)
        assert row.mious()[0] == row.mious()[1]
        assert all(row.holds(precision) for precision in ("fp32", "fp16", "int8"))


def test_masks_are_counted_where_their_pixels_are(trained):
    row, parts, _ = held(trained, trained)
    valid = sum(int((picture(index).mask != 255).sum()) for index in range(2))
    assert row.trained.sum() == valid
    assert 0 < parts.trained.sum() < parts.num_pixels


def test_another_class_is_a_difference_and_a_tie_is_none(trained):
    def other_class(image):
        return trained(image).roll(1, 1)

    def classes(image):
        return other_class(image).argmax(1).to(torch.uint8)

    for exported in (other_class, classes):
        rows = held(trained, exported)
        assert not any(row.holds("fp32") for row in rows)
        assert all(row.num_ties < row.num_other for row in rows)

    def equal_logits(image):
        return 0 * trained(image)

    def last_class(image):
        return equal_logits(image)[:, 0].to(torch.uint8) + 2

    for row in held(equal_logits, last_class):
        assert row.num_other == row.num_ties == row.num_pixels
        assert row.holds("fp32")


def test_logits_too_far_apart_or_not_a_number_do_not_agree(trained):
    assert all(row.holds("fp32") for row in held(trained, lambda image: trained(image) + 1e-5))
    for wrong in (0.1, float("nan")):
        rows = held(trained, lambda image, wrong=wrong: trained(image) + wrong)
        assert not any(row.holds("fp32") for row in rows)


def test_int8_is_held_to_its_score_and_without_masks_to_its_pixels():
    matrices = [torch.tensor([[90, 10], [0, 100]]), torch.tensor([[89, 11], [0, 100]])]
    row = Agreement("x", num_pixels=1000, num_other=21, trained=matrices[0], exported=matrices[1])
    assert row.holds("int8")
    row.exported = torch.tensor([[70, 30], [0, 100]])
    assert not row.holds("int8")
    assert not Agreement("x", num_pixels=1000, num_other=21).holds("int8")
    assert Agreement("x", num_pixels=1000, num_other=20).holds("int8")


def test_both_are_timed_in_turns(trained):
    calls = []
    first, second = milliseconds([lambda _: calls.append(0), lambda _: calls.append(1)], picture().image)
    assert calls == [0, 1] * (len(calls) // 2)
    assert first >= 0
    assert second >= 0
