import pytest
import torch
from rich.console import Console

from tests.predict.export.models import picture, saved_model
from unetdist.predict.export.agreement import Agreement, agreement_table, compare, milliseconds


@pytest.fixture
def trained():
    return saved_model().model


def held(trained, exported, **settings):
    return compare(trained, exported, [picture(index, **settings) for index in range(2)])


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
        assert all(row.num_other for row in rows)

    def equal_logits(image):
        return 0 * trained(image)

    def last_class(image):
        return equal_logits(image)[:, 0].to(torch.uint8) + 2

    for row in held(equal_logits, last_class):
        assert row.num_other == 0
        assert row.holds("fp32")


def test_logits_too_far_apart_or_not_a_number_do_not_agree(trained):
    assert all(row.holds("fp32") for row in held(trained, lambda image: trained(image) + 1e-5))
    for wrong in (0.1, float("nan")):
        rows = held(trained, lambda image, wrong=wrong: trained(image) + wrong)
        assert not any(row.holds("fp32") for row in rows)


@pytest.mark.parametrize(("precision", "few", "many", "pixels"), [("int8", 10, 30, 20), ("fp16", 1, 5, 5)])
def test_others_are_held_to_their_score_and_without_masks_to_their_pixels(precision, few, many, pixels):
    trained = torch.tensor([[900, 100], [0, 1000]])
    row = Agreement("x", num_pixels=1000, num_other=999, is_near=False, trained=trained)
    for number, is_well in ((0, True), (few, True), (many, False), (-many, True)):
        row.exported = torch.tensor([[900 - number, 100 + number], [0, 1000]])
        assert row.holds(precision) == is_well
    assert Agreement("x", num_pixels=1000, num_other=pixels).holds(precision)
    assert not Agreement("x", num_pixels=1000, num_other=pixels + 1).holds(precision)


def test_both_are_timed_in_turns(trained):
    calls = []
    first, second = milliseconds([lambda _: calls.append(0), lambda _: calls.append(1)], picture().image)
    assert calls == [0, 1] * (len(calls) // 2)
    assert first >= 0
    assert second >= 0


def text_of(*rows, precision):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(agreement_table(rows, precision=precision, origin="shards/val [1]"))
    return " ".join(console.export_text().split())


def test_a_line_for_each_size_on_a_narrow_screen():
    matrix = torch.tensor([[1, 1], [0, 2]])
    good = Agreement("own size", 4, 1_234_567, 0, 1.5e-6, trained=matrix, exported=matrix)
    bad = Agreement("odd parts", 8, 100, 1)
    text = text_of(good, bad, precision="fp32")
    assert "4 images: shards/val [1]" in text
    assert "own size 1,234,567 1.5e-06 0 0.5833 0.5833 agrees" in text
    assert "odd parts 100 1 DIFFERS" in text
    assert "within 0.0002 of the largest logit" in text


def test_rounded_formats_are_held_to_their_own_bounds():
    text = text_of(Agreement("own size", 4, 1000, 12, 0.5), precision="int8")
    assert "own size 1,000 5.0e-01 12 agrees" in text
    assert "mIoU lower by 0.002 at most, or, without masks, 0.5 % of pixels" in text_of(
        Agreement("own size", 4, 1000, 5, 0.5), precision="fp16"
    )
    assert "mIoU lower by 0.01 at most, or, without masks, 2 % of pixels" in text
