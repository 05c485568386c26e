"""Masks that do not mean what Labels.txt makes of them: `unetdist shard` says so, and its advice is right."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.sharding.picture_folders import encoded
from tests.sharding.test_foreign import pack
from unetdist.commands import shard as script
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError

SCRIPT = Path(__file__).parents[2] / "launch" / "shard_dataset.py"

CRACK = "0 0 0 background\n255 0 0 crack\n"
COLORS = [(128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)]
COLORS += [(192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0)]
STREET = "".join(f"{r} {g} {b} c{number}\n" for number, (r, g, b) in enumerate(COLORS))
COUNT = 8


def photograph(number: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def discs(number: int, classes: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Class indices: 0 with a disc of each of the others."""
    rng = np.random.default_rng(100 + number)
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for label in range(1, classes):
        radius = 0.12 * size[0]
        mask[(y - rng.integers(0, size[0])) ** 2 + (x - rng.integers(0, size[1])) ** 2 < radius**2] = label
    return mask


@pytest.fixture
def shard(tmp_path, capsys):
    """A function that writes photographs and masks, shards them, and gives the manifest and all that was printed."""

    def shard(labels, masks, *options, suffix="png", exchanged=False, **how):
        folders = [tmp_path / "images", tmp_path / "masks"]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        (tmp_path / "Labels.txt").write_text(labels)
        for number, mask in enumerate(masks):
            photograph(number, np.shape(mask)[:2]).save(folders[0] / f"{number}.jpg")
            (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(
                folders[1] / f"{number}.{suffix}", **how
            )
        images, targets = folders[::-1] if exchanged else folders
        arguments = ["--images", images, "--masks", targets, "--labels", tmp_path / "Labels.txt", *options]
        script.main([*map(str, arguments), "--workers", "1", "--out", str(tmp_path / "out")])
        return Manifest.load(tmp_path / "out"), capsys.readouterr().out

    return shard


def refused(shard, *arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        shard(*arguments, **options)
    return str(caught.value)


def lines_in(text: str) -> str:
    """The lines of Labels.txt that a message advises first."""
    block = re.search(r"(?:\n +\d.*)+\n?", text).group()
    return "".join(f"{line.strip()}\n" for line in block.strip().splitlines())


def pixels(masks, classes: int) -> list[int]:
    return np.bincount(np.concatenate([np.ravel(mask) for mask in masks]), minlength=classes).tolist()


BLACK_AND_WHITE = [discs(number, 2) for number in range(COUNT)]


def test_grey_masks_of_0_and_255_do_not_lose_their_class(shard):
    true = BLACK_AND_WHITE
    masks = [mask * np.uint8(255) for mask in true]
    text = refused(shard, CRACK, masks)
    assert re.search(r"\n  \S+Labels.txt: 'background' \(0\) is the only class", text)
    assert "\\n" not in text
    assert "--skip-bad" not in text
    assert lines_in(text) == "0 0 0 background\n255 255 255 crack\n"
    manifest, _ = shard(lines_in(text), masks)
    assert list(manifest.class_pixels) == pixels(true, 2)
    assert manifest.ignored_pixels == 0


def test_a_class_of_few_masks_beside_an_ignored_border_is_read(shard):
    """None of the masks that are looked at first holds it."""
    masks = [np.pad(np.zeros((44, 60), np.uint8), 2, constant_values=255) for _ in range(2 * COUNT)]
    masks[1][10:20, 10:20] = 1
    manifest, _ = shard(CRACK, masks)
    assert list(manifest.class_pixels) == [2 * COUNT * 44 * 60 - 100, 100]
    assert manifest.ignored_pixels == 2 * COUNT * (48 * 64 - 44 * 60)


def test_the_other_remedy_for_255_ignores_it(shard):
    masks = [mask * np.uint8(255) for mask in BLACK_AND_WHITE]
    text = refused(shard, CRACK, masks)
    lines = [line.strip() for line in text.rpartition("write these lines:\n")[2].splitlines()]
    lines = lines[:3]
    manifest, _ = shard("\n".join(lines), masks, "--ignore", "unlabelled")
    assert manifest.class_pixels[0] == pixels(BLACK_AND_WHITE, 2)[0]
    assert manifest.ignored_pixels == pixels(BLACK_AND_WHITE, 2)[1]


def test_colour_masks_of_0_and_255_get_a_remedy_that_gives_their_class(shard):
    masks = [Image.fromarray(mask * np.uint8(255)).convert("RGB") for mask in BLACK_AND_WHITE]
    text = refused(shard, CRACK, masks)
    assert "--mask-format ids" not in text
    assert "'255 255 255 crack'" in text
    manifest, _ = shard(CRACK.replace("255 0 0 crack", "255 255 255 crack"), masks)
    assert list(manifest.class_pixels) == pixels(BLACK_AND_WHITE, 2)
    assert "'background' (0) is the only class" in refused(shard, CRACK, masks, "--mask-format", "ids", "--overwrite")


@pytest.mark.parametrize("greys", [(0, 128, 255), (0, 40000 // 257 * 257, 65535)])
def test_greys_that_are_no_ids_get_the_lines_that_make_them_classes(shard, greys):
    true = [discs(number, 3) for number in range(COUNT)]
    masks = [np.array(greys, np.uint8 if greys[2] == 255 else np.uint16)[mask] for mask in true]
    text = refused(shard, "0 0 0 sky\n255 0 0 road\n0 255 0 car\n", masks)
    advised = text.partition("are greys")[2] or text.partition("in this order")[2]
    manifest, _ = shard(lines_in(advised), masks)
    assert list(manifest.class_pixels) == pixels(true, 3)
    assert manifest.ignored_pixels == 0


IDS = [discs(number, 12) for number in range(COUNT)]


@pytest.mark.parametrize(
    ("suffix", "name", "options"),
    [
        ("webp", "lossy WebP", []),
        *(
            ("jpg", "JPEG", options)
            for options in ([], ["--unknown-colors", "nearest"], ["--unknown-colors", "ignore"])
        ),
    ],
)
def test_a_lossy_file_holds_no_ids(shard, suffix, name, options):
    text = refused(shard, STREET, IDS, *options, suffix=suffix, quality=90)
    assert f"a {name}" in text
    assert "PNG" in text


def test_a_lossless_webp_holds_ids(shard):
    manifest, _ = shard(STREET, IDS, "--mask-format", "ids", suffix="webp", lossless=True)
    assert list(manifest.class_pixels) == pixels(IDS, 12)


def test_a_jpeg_does_not_keep_colours_apart_that_are_nearly_one(shard):
    near = "".join(f"{20 * n} {20 * n} {n} c{n}\n" for n in range(11)) + "201 201 10 like_c10\n"
    masks = [palette_of(near).colorize(mask) for mask in IDS]
    text = refused(shard, near, masks, "--unknown-colors", "nearest", suffix="jpg", quality=95)
    assert "'c10' and 'like_c10'" in text


def test_a_jpeg_of_colours_is_read_by_the_nearest_when_asked(shard):
    masks = [palette_of(STREET).colorize(mask) for mask in IDS]
    how = {"suffix": "jpg", "quality": 95, "subsampling": 0}
    assert "JPEG changes colours" in refused(shard, STREET, masks, **how)
    manifest, _ = shard(STREET, masks, "--unknown-colors", "nearest", **how)
    wrong = np.abs(np.subtract(manifest.class_pixels, pixels(IDS, 12))).sum()
    assert wrong < 0.01 * sum(manifest.class_pixels)


def test_the_nearest_colour_is_not_taken_for_ids(shard):
    masks = [Image.fromarray(mask).convert("RGB") for mask in IDS]
    assert "--mask-format ids" in refused(shard, STREET, masks, "--unknown-colors", "nearest")
    manifest, _ = shard(STREET, masks, "--mask-format", "ids")
    assert list(manifest.class_pixels) == pixels(IDS, 12)


@pytest.mark.parametrize("count", [2, COUNT])
def test_masks_resized_smoothly_are_refused(shard, count):
    large = [Image.fromarray(discs(number, 12, (192, 256))) for number in range(count)]
    smooth = [mask.resize((128, 96), Image.Resampling.BILINEAR) for mask in large]
    assert "third class" in refused(shard, STREET, smooth)
    _, text = shard(STREET, smooth, "--mask-format", "ids")
    assert "third class" not in text
    nearest = [mask.resize((128, 96), Image.Resampling.NEAREST) for mask in large]
    manifest, text = shard(STREET, nearest, "--overwrite")
    assert "third class" not in text
    assert list(manifest.class_pixels) == pixels(nearest, 12)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 128, 255)])
def test_a_drawn_border_of_one_pixel_is_no_sign_of_resizing(shard, values):
    cells = [discs(number, 2) for number in range(COUNT)]
    grown = [np.asarray(Image.fromarray(cell).filter(ImageFilter.MaxFilter(3))) for cell in cells]
    true = [large + small for large, small in zip(grown, cells, strict=True)]
    labels = "".join(f"{v} {v} {v} c{v}\n" for v in values)
    manifest, text = shard(labels, [np.array(values, np.uint8)[mask] for mask in true])
    assert list(manifest.class_pixels) == pixels(true, 3)
    assert "resized" not in text


def test_exchanged_folders_are_told_at_once(shard, tmp_path):
    masks = [palette_of(STREET).colorize(mask) for mask in IDS]
    for options in ([], ["--unknown-colors", "nearest"], ["--unknown-colors", "ignore"]):
        text = refused(shard, STREET, masks, *options, exchanged=True)
        assert "images and masks are exchanged" in text
        assert "use --unknown-colors nearest" not in text
    assert not (tmp_path / "out").exists()


def test_photographs_in_place_of_masks_are_told_at_once(shard, tmp_path):
    masks = [photograph(50 + number) for number in range(COUNT)]
    assert "like a photograph" in refused(shard, STREET, masks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("common", ["", "128 128 128 sky\n"])
def test_the_label_file_of_other_masks_is_told_at_once_by_its_name(shard, tmp_path, common):
    masks = [palette_of(STREET).colorize(mask) for mask in IDS]
    text = refused(shard, f"{common}1 2 3 a\n200 100 7 b\n9 9 250 c\n", masks)
    assert text.startswith(f"{tmp_path / 'Labels.txt'}: ")
    assert "checked.\nLabels.txt does not list" in text
    assert "8 masks" in text
    assert "128 64 128" in text  # a colour of the masks, in the table
    assert "nearest if" not in text
    assert not (tmp_path / "out").exists()


def test_an_index_of_tars_tells_the_label_file_of_other_masks_at_once(tmp_path):
    mask = palette_of(STREET).colorize(IDS[0])
    image = encoded(np.asarray(photograph(0)), "JPEG")
    pack(tmp_path / "tars" / "a.tar", [str(number) for number in range(COUNT)], mask, "seg.png", image)
    pack(tmp_path / "tars" / "b.tar", ["x"], mask, "seg.png", b"is not looked at")
    (tmp_path / "Labels.txt").write_text("1 2 3 a\n200 100 7 b\n9 9 250 c\n")
    arguments = ["index", tmp_path / "tars", "--mask-ext", "seg.png", "--labels", tmp_path / "Labels.txt"]
    with pytest.raises(DataError, match="is the label file of other masks"):
        script.main([*map(str, arguments), "--workers", "1"])
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == ["a.tar", "b.tar"]


def test_a_colour_here_and_there_is_told_with_all_other_problems(shard):
    masks = [palette_of(STREET).colorize(mask) for mask in IDS]
    for mask in masks:
        mask[3, 4] = 1, 2, 3
    text = refused(shard, STREET, masks)
    assert f"{COUNT} problems in {COUNT} samples" in text


def test_ids_that_count_from_1_get_the_lines_that_list_them(shard):
    masks = [mask + np.uint8(1) for mask in IDS]
    text = refused(shard, STREET, masks)
    manifest, told = shard(lines_in(text.partition("count from 1.")[2]), masks)
    assert list(manifest.class_pixels) == pixels(IDS, 12)
    assert re.search(r"hold ids, taken as \S+Labels.txt gives them: 1 c0, 2 c1, .*, 12 c11", told)


def test_how_ids_were_taken_is_told(shard):
    """Ids 1 to 11 of a file with 12 lines are all listed, but one class off."""
    _, told = shard(STREET, [np.minimum(mask + 1, 11).astype(np.uint8) for mask in IDS])
    assert re.search(r"lines of \S+Labels.txt count from 0: 0 c0, 1 c1, .*, 11 c11; none holds 0 \(c0\)", told)
    _, told = shard(STREET, [palette_of(STREET).colorize(mask) for mask in IDS], "--overwrite")
    assert "hold ids" not in told


def test_transparent_pixels_with_a_class_beneath_are_told(shard):
    masks = []
    for mask in IDS:
        alpha = np.full(mask.shape, 255, np.uint8)
        alpha[:5] = 0
        masks.append(np.dstack([palette_of(STREET).colorize(mask), alpha]))
    manifest, told = shard(STREET, masks)
    assert f"{COUNT * 5 * 64:,} pixels of {COUNT} masks are transparent" in told
    assert "at x 0, y 0 in 0.png" in told
    assert list(manifest.class_pixels) == pixels(IDS, 12)


def palette_of(labels: str) -> Palette:
    rows = [line.split() for line in labels.splitlines()]
    return Palette.from_records(
        {"index": number, "id": number, "name": name, "color": list(map(int, color))}
        for number, (*color, name) in enumerate(rows)
    )
