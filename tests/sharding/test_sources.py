"""Which files belong together, and what is said of those that have no other half."""

import io
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sharding.picture_folders import write_folders
from unetdist.data.labels.masks import read_mask
from unetdist.data.shapes import PALETTE, draw
from unetdist.errors import ConfigError, DataError
from unetdist.sharding.sources import Problem, files_below, from_folders, from_list, from_shapes


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def keys(source) -> list[str]:
    return [sample.key for sample in source.samples]


def test_pairs_have_the_same_folder_and_stem(tmp_path):
    touch(tmp_path, "i/b.JPG", "i/x/a.v2.tif", "i/.hidden.png", "i/notes.txt", "i/.git/c.png")
    touch(tmp_path, "m/b.png", "m/x/a.v2.png")
    source = from_folders(tmp_path / "i", tmp_path / "m")
    assert keys(source) == ["b", "x/a.v2"]
    assert source.problems == ()
    assert source.reader.read(source.samples[1]) == (b"i/x/a.v2.tif", b"m/x/a.v2.png")
    assert source.samples[0].image == "b.JPG"
    assert source.samples[0].num_bytes == len("i/b.JPG") + len("m/b.png")


@pytest.mark.parametrize(
    ("names", "image_name", "mask_name", "expected"),
    [
        (["i/a.png", "m/a_L.png", "m/a_inst.png"], None, "{stem}_L.png", ["a"]),
        (["i/a.jpg", "i/a_L.png", "i/b.jpg", "i/b_L.png"], None, "{stem}_L.png", ["a", "b"]),
        (["i/u/1_left.png", "m/u/1_fine.png", "m/u/1_x.json"], "{stem}_left.png", "{stem}_fine.png", ["u/1"]),
        (["i/u/7/image.png", "i/u/7/mask.png"], "{stem}/image.png", "{stem}/mask.png", ["u/7"]),
        (["i/a.jpg", "i/masks/a_m.png"], None, "masks/{stem}_m.png", ["a"]),
    ],
)
def test_templates_tell_images_and_masks_apart(tmp_path, names, image_name, mask_name, expected):
    touch(tmp_path, *names)
    masks = tmp_path / ("m" if any(name.startswith("m/") for name in names) else "i")
    source = from_folders(tmp_path / "i", masks, image_name=image_name, mask_name=mask_name)
    assert keys(source) == expected
    assert source.problems == ()


def test_a_mask_folder_inside_the_image_folder_holds_no_images(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/labels/a.png")
    assert from_folders(tmp_path / "i", tmp_path / "i" / "labels").problems == ()


def test_a_missing_twin_is_a_problem_that_names_the_file(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/x/b.jpg", "m/a_L.png", "m/c_L.png")
    source = from_folders(tmp_path / "i", tmp_path / "m", mask_name="{stem}_L.png")
    assert keys(source) == ["a"]
    assert source.problems == (
        Problem("image without mask", str(tmp_path / "i/x/b.jpg"), f"no x/b_L.png in {tmp_path / 'm'}"),
        Problem("mask without image", str(tmp_path / "m/c_L.png"), f"no c.* in {tmp_path / 'i'}"),
    )


def test_two_files_with_one_key_are_a_problem(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/a.png", "m/a.png", "m/a.tif")
    problems = from_folders(tmp_path / "i", tmp_path / "m").problems
    assert [problem.kind for problem in problems] == ["two images with one key", "two masks with one key"]
    assert problems[0] == Problem("two images with one key", "a.png", "a.jpg is also a")


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        (["i/a.png"], {"masks": "i"}, ConfigError, r"images and masks are both .*--mask-name"),
        (["i/a.png", "m/a.png"], {"mask_name": "a_L"}, ConfigError, r"--mask-name \(a_L\) must hold \{stem\}"),
        (["i/a.png", "m/a.png"], {"image_name": "a"}, ConfigError, r"--image-name \(a\) must hold \{stem\}"),
        (["i/a.png"], {}, DataError, r"m: no such folder; give the folder of the masks with --masks"),
        (["i/a.txt", "m/a.png"], {}, DataError, r"i: no images here; looked for \*\.jpg .*subfolders"),
        (["i/a.jpg", "m/a.png"], {"mask_name": "{stem}_L.png"}, DataError, r"m: no masks here; looked for \{stem\}_L"),
        (
            ["i/a.jpg", "i/b.jpg", "m/a_L.png"],
            {},
            DataError,
            r"none of 2 images has a mask: the first image is a\.jpg, the first mask .* is a_L\.png; .*--mask-name",
        ),
    ],
)
def test_folders_that_cannot_be_right_are_refused(tmp_path, names, options, error, message):
    touch(tmp_path, *names)
    masks = tmp_path / options.pop("masks", "m")
    with pytest.raises(error, match=message):
        from_folders(tmp_path / "i", masks, **options)


def test_a_list_names_pairs_from_its_own_folder_on(tmp_path):
    touch(tmp_path, "i/a.png", "i/b c.png", "m/1.png", "m/2 3.png", "i/it's.png")
    (tmp_path / "list.txt").write_bytes(
        "\ufeff# comment\n\ni/a.png  m/1.png\r\n'i/b c.png' \"m/2 3.png\"\n./i/it's.png\tm/1.png\n".encode()
    )
    source = from_list(tmp_path / "list.txt")
    assert keys(source) == ["i/a", "i/b c", "i/it's"]
    assert source.problems == ()
    assert source.reader.read(source.samples[1]) == (b"i/b c.png", b"m/2 3.png")


def test_a_list_may_name_files_below_given_folders_or_with_full_path(tmp_path):
    touch(tmp_path, "data/i/a.png", "data/m/a.png")
    (tmp_path / "list.txt").write_text(f"a.png a.png\n{tmp_path}/data/i/a.png {tmp_path}/data/m/a.png\n")
    source = from_list(tmp_path / "list.txt", images=tmp_path / "data/i", masks=tmp_path / "data/m")
    assert keys(source) == ["a", f"{tmp_path}/data/i/a".lstrip("/")]


def test_a_list_reports_what_is_not_there_or_doubled(tmp_path):
    touch(tmp_path, "a.png", "am.png", "a.jpg", "e.png")
    (tmp_path / "list.txt").write_text(
        "a.png am.png\na.jpg am.png\nb.png am.png\na.png missing.png\nc.png d.png\ne.png .\n"
    )
    source = from_list(tmp_path / "list.txt")
    assert keys(source) == ["a"]
    assert [(problem.kind, Path(problem.where).name) for problem in source.problems] == [
        ("two images with one key", "a.jpg"),
        ("image not found", "b.png"),
        ("two images with one key", "a.png"),
        ("image not found", "c.png"),
        ("mask not found", "d.png"),
        ("mask not found", tmp_path.name),
    ]
    assert source.problems[-1].detail == f"listed in {tmp_path / 'list.txt'}, line 6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a b c\n", r"list\.txt, line 1: expected `image mask`, found 3 fields in 'a b c'; put names .* in quotes"),
        (b"a.png\n", "found 1 fields"),
        (b"it's a name.png\n", "found 3 fields"),
        (b"# nothing\n", r"list\.txt: lists no samples"),
        (b"\xff\xfe\n", "not UTF-8 text"),
        (None, "no such file; give the list"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        from_list(tmp_path / "list.txt")


def test_a_changed_file_has_another_stamp(tmp_path):
    touch(tmp_path, "i/a.jpg", "m/a.png")
    before = from_folders(tmp_path / "i", tmp_path / "m").samples[0].stamp
    assert from_folders(tmp_path / "i", tmp_path / "m").samples[0].stamp == before
    (tmp_path / "m/a.png").write_bytes(b"longer than before")
    assert from_folders(tmp_path / "i", tmp_path / "m").samples[0].stamp != before


def test_a_link_that_leads_nowhere_is_one_of_the_problems(tmp_path):
    root = write_folders(tmp_path, 3)
    for name in ("images/day0/00.jpg", "masks/day1/01.png"):
        (root / name).unlink()
        (root / name).symlink_to("nowhere")
    source = from_folders(root / "images", root / "masks")
    assert [sample.key for sample in source.samples] == ["day0/02"]
    assert [(problem.kind, problem.where, problem.detail) for problem in source.problems] == [
        ("cannot be read", str(root / "images/day0/00.jpg"), "No such file or directory"),
        ("cannot be read", str(root / "masks/day1/01.png"), "No such file or directory"),
    ]


def test_names_in_two_unicode_forms_are_a_pair(tmp_path):
    decomposed = unicodedata.normalize("NFD", "\u00e4")
    touch(tmp_path, f"i/{decomposed}.jpg", "m/\u00e4.png")
    source = from_folders(tmp_path / "i", tmp_path / "m")
    assert source.problems == ()
    assert keys(source) == [decomposed]  # as the image has it: shards of today keep their keys


def test_two_images_whose_names_look_equal_are_a_problem(tmp_path):
    touch(tmp_path, f"i/{unicodedata.normalize('NFD', 'ä')}.jpg", "i/ä.jpg", "m/ä.png")
    assert [each.kind for each in from_folders(tmp_path / "i", tmp_path / "m").problems] == ["two images with one key"]


def test_a_list_may_have_the_backslashes_of_windows(tmp_path):
    touch(tmp_path, "i/a b.png", "m/c.png", "i/d.png")
    (tmp_path / "pairs.txt").write_text('"i\\a b.png" m\\c.png\ni\\d.png\tm\\c.png\n')
    source = from_list(tmp_path / "pairs.txt")
    assert source.problems == ()
    assert [(sample.key, sample.image, sample.mask) for sample in source.samples] == [
        ("i/a b", "i/a b.png", "m/c.png"),
        ("i/d", "i/d.png", "m/c.png"),
    ]


def test_pictures_are_those_that_are_drawn():
    source = from_shapes(3, seed=5)
    assert [sample.key for sample in source.samples] == ["00000", "00001", "00002"]
    image, mask = draw(2, seed=5)
    image_bytes, mask_bytes = source.reader.read(source.samples[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image_bytes))), image)
    reading = read_mask(mask_bytes, PALETTE)
    read, unknowns = reading.mask, reading.unknowns
    assert np.array_equal(read, mask)
    assert unknowns == []


def test_no_pictures_are_refused():
    with pytest.raises(ConfigError, match=r"shapes \(0\) must be 1 or more; use 400"):
        from_shapes(0, seed=0)


def names_below(folder):
    return sorted(files_below(folder))


@pytest.fixture
def searched(tmp_path):
    for name in ("i/a.png", "i/x/b.png", "other/c.png", "i/.hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "i"


@pytest.mark.parametrize("target", [".", "..", "x/.."])
def test_a_link_to_a_folder_above_is_left_out(searched, target, caplog):
    (searched / "x/loop").symlink_to((searched / "x" / target).resolve())
    (searched / "all").symlink_to(searched.parent)
    assert names_below(searched) == ["a.png", "x/b.png"]
    assert "searched once" in caplog.text


def test_a_folder_has_its_own_name_and_not_that_of_a_link(searched):
    (searched / "a_link").symlink_to(searched / "x")
    assert names_below(searched) == ["a.png", "x/b.png"]


def test_a_folder_elsewhere_is_searched_once(searched):
    (searched / "one").symlink_to(searched.parent / "other")
    (searched / "two").symlink_to(searched.parent / "other")
    (searched.parent / "other/back").symlink_to(searched)
    assert names_below(searched) == ["a.png", "one/c.png", "x/b.png"]


def test_the_root_may_be_a_link(searched, tmp_path):
    (tmp_path / "link").symlink_to(searched)
    assert names_below(tmp_path / "link") == ["a.png", "x/b.png"]
