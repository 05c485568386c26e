from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.predict.export.models import picture, saved_model
from tests.synthetic import write_shards
from unetdist.errors import DataError
from unetdist.predict.export.agreement import Agreement, agreement_table, compare, find_check_images


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
        assert (row.num_other, row.apart) == (0, 0)
        assert row.confusions[0].equal(row.confusions[1])
        assert row.mious()[0] == row.mious()[1]
        assert all(row.holds(precision) for precision in ("fp32", "fp16", "int8"))


def test_masks_are_counted_where_their_pixels_are(trained):
    row, parts, _ = held(trained, trained)
    valid = sum(int((picture(index).mask != 255).sum()) for index in range(2))
    assert row.confusions[0].sum() == valid
    assert 0 < parts.confusions[0].sum() < parts.num_pixels


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
    row = Agreement("x", num_pixels=1000, num_other=999, apart=0.5)
    for number, is_well in ((0, True), (few, True), (many, False), (-many, True)):
        row.confusions = torch.tensor([[[900, 100], [0, 1000]], [[900 - number, 100 + number], [0, 1000]]])
        assert row.holds(precision) == is_well
    assert Agreement("x", num_pixels=1000, num_other=pixels).holds(precision)
    assert not Agreement("x", num_pixels=1000, num_other=pixels + 1).holds(precision)


def text_of(*rows, precision):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(agreement_table(rows, precision=precision, origin="shards/val [1]"))
    return " ".join(console.export_text().split())


def test_a_line_for_each_size_on_a_narrow_screen():
    matrix = torch.tensor([[1, 1], [0, 2]])
    good = Agreement("own size", 4, 1_234_567, 0, 1.5e-6, torch.stack([matrix, matrix]))
    bad = Agreement("odd parts", 8, 100, 1)
    text = text_of(good, bad, precision="fp32")
    assert "4 images: shards/val [1]" in text
    assert "own size 1,234,567 1.5e-06 0 0.5833 0.5833 agrees" in text
    assert "odd parts 100 1 DIFFERS" in text
    assert "within 0.0002 of the largest logit" in text


def test_rounded_formats_are_held_to_their_own_bounds():
    text = text_of(Agreement("own size", 4, 1000, 12, 0.5), precision="int8")
    assert "own size 1,000 5.0e-01 12 agrees" in text
    assert "mIoU lower by 0.002 at most, or, without masks, 0.5% of pixels" in text_of(
        Agreement("own size", 4, 1000, 5, 0.5), precision="fp16"
    )
    assert "mIoU lower by 0.01 at most, or, without masks, 2.0% of pixels" in text


def test_shards_with_their_masks(tmp_path):
    write_shards(tmp_path, 7)
    of, pictures = find_check_images(saved_model(), str(tmp_path), limit=6)
    assert (of, len(pictures)) == (str(tmp_path), 6)
    for index, found in enumerate(pictures):
        assert found.image.equal(picture(index).image)
        assert found.mask.equal(picture(index).mask)


def test_the_size_that_the_model_was_trained_at(tmp_path):
    write_shards(tmp_path, 1)
    _, [found] = find_check_images(saved_model(resize=(16, 12)), str(tmp_path), limit=6)
    assert found.image.shape == (1, 3, 12, 16)
    assert found.image.dtype == torch.uint8
    assert found.mask.shape == (1, 12, 16)


def test_an_image_and_a_folder_of_images(tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (8, 6), (len(name), 2, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    _, pictures = find_check_images(saved_model(), str(tmp_path), limit=6)
    assert [found.image.shape for found in pictures] == [(1, 3, 6, 8)] * 2
    assert pictures[0].mask is None
    _, [found] = find_check_images(saved_model(in_channels=1), str(tmp_path / "a.png"), limit=6)
    assert found.image.shape == (1, 1, 6, 8)


def test_without_pictures_shapes_are_drawn():
    of, pictures = find_check_images(saved_model(in_channels=4), None, limit=9)
    assert of == "drawn shapes; give --check for real images"
    assert [found.image.shape for found in pictures] == [(1, 4, 96, 128)] * 8


def test_what_holds_no_pictures_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no images and no shards in it; give another folder"):
        find_check_images(saved_model(), str(tmp_path), limit=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.png: .+"):
        find_check_images(saved_model(), str(tmp_path / "broken.png"), limit=1)


def test_shards_of_other_classes(tmp_path):
    manifest = write_shards(tmp_path / "shards", 1)
    records = [{**record, "name": record["name"].replace("road", "street")} for record in manifest.palette_records]
    replace(manifest, palette_records=tuple(records)).save(tmp_path / "shards")
    with pytest.raises(DataError, match=r"has other classes than the model; give shards of its own labels"):
        find_check_images(saved_model(), str(tmp_path / "shards"), limit=1)
