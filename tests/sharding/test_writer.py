"""All that is wrong with the data is told together."""

import numpy as np
import pytest
from PIL import Image

from tests.sharding.ingested import contents, samples_of, write
from tests.sharding.picture_folders import COLORS, color_mask, encoded, image_array, mask_array, write_folders
from unetdist.data.decode import decode_mask
from unetdist.data.manifest import MANIFEST_NAME, Manifest
from unetdist.errors import DataError
from unetdist.sharding.describe import describe_problems, next_command
from unetdist.sharding.sources import Problem
from unetdist.storage.folders import open_folder


def test_all_problems_are_told_together_and_no_data_set_is_left(root, tmp_path):
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    (root / "masks/day1/01.png").write_bytes((root / "masks/day1/01.png").read_bytes()[:-30])
    (root / "masks/day0/02.png").write_bytes(color_mask(mask_array(2, (9, 9))))
    pixels = COLORS[mask_array(3)]
    pixels[4, 5] = (1, 2, 3)
    (root / "masks/day1/03.png").write_bytes(encoded(pixels))
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out", workers=2)
    text = str(caught.value)
    assert "4 problems in 20 samples, the data set is not finished." in text
    assert "day0/00.jpg, day0/00.png: image cannot be read (no known image format); replace the file." in text
    assert "day1/01.jpg, day1/01.png: mask cannot be read" in text
    assert "image is 16x12, mask is 9x9 (width x height); export both at one size" in text
    assert "1 2 3" in text
    assert "x 5, y 4 in day1/03.png" in text
    assert "run the same command again (finished shards are kept), or leave bad samples out with --skip-bad" in text
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    write_folders(root)
    write(root, tmp_path / "out")
    write(root, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_after_problems_the_good_shards_are_kept(root, tmp_path):
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 problem in 20 samples"):
        write(root, tmp_path / "out")
    assert "2 of them kept" not in write(root, tmp_path / "out", skip_bad=True)
    assert Manifest.load(tmp_path / "out").num_samples == 19


def test_a_missing_twin_is_told_before_anything_is_read_or_written(root, tmp_path):
    (root / "masks/day0/04.png").unlink()
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out")
    text = str(caught.value)
    assert "1 problem in 19 samples" in text
    assert f"image without mask (1)\n  {root}/images/day0/04.jpg: no day0/04.* in {root}/masks" in text
    assert "finished shards" not in text
    assert not (tmp_path / "out").exists()


def test_bad_samples_are_left_out_when_asked(root, tmp_path):
    (root / "masks/day0/04.png").unlink()
    (root / "images/day0/00.jpg").write_bytes(b"no image")
    (root / "masks/day0/02.png").write_bytes(encoded(np.full((12, 16, 3), 7, np.uint8)))
    account = write(root, tmp_path / "out", skip_bad=True)
    assert "left out, because of --skip-bad" in account
    assert "17 samples in 4 shards" in account
    assert sorted(samples_of(tmp_path / "out"))[0] == "day0/06"
    assert write(root, tmp_path / "out", skip_bad=True).count("kept from before") == 1


def test_a_run_that_finishes_nothing_leaves_nothing(root, tmp_path):
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="20 problems in 20 samples"):
        write(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_an_error(root, tmp_path):
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 20 samples is left; run it without --skip-bad"):
        write(root, tmp_path / "out", skip_bad=True)


def test_a_long_list_of_problems_is_cut_and_whole_in_a_file(root, tmp_path):
    write_folders(root, 60)
    for path in (root / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "out")
    assert "  ... and 40 more\n" in str(caught.value)
    assert f"All of them are listed in {tmp_path / 'out' / 'problems.txt'}" in str(caught.value)
    assert (tmp_path / "out" / "problems.txt").read_text().count("\n") == 61
    write_folders(root, 60)
    write(root, tmp_path / "out")
    assert not (tmp_path / "out" / "problems.txt").exists()


def test_advice_of_several_lines_is_indented_below_the_file_name(tmp_path):
    problems = [Problem("k", "a\nb", "do:\n  1 2 3\x1b")]
    text = describe_problems(problems, open_folder(str(tmp_path)))
    assert text == "k (1)\n  a\\nb: do:\n      1 2 3\\x1b"


@pytest.mark.parametrize(("policy", "expected"), [("ignore", 255), ("nearest", 1)])
def test_unknown_colours_are_told_even_if_they_are_accepted(root, tmp_path, policy, expected):
    pixels = COLORS[mask_array(3)]
    pixels[4, 5] = (250, 2, 3)
    (root / "masks/day1/03.png").write_bytes(encoded(pixels))
    account = write(root, tmp_path / "out", unknown_colors=policy)
    assert "250 2 3" in account
    assert decode_mask(samples_of(tmp_path / "out")["day1/03"][1])[4, 5] == expected
    assert write(root, tmp_path / "out", unknown_colors=policy).startswith(account.split("\n")[0])


def test_the_next_command_names_the_folders_and_tells_no_secrets():
    assert next_command(["x/train"]).endswith("--data.train x/train --data.val VALIDATION_SHARDS")
    assert next_command(["x/val/"]).endswith("--data.train TRAINING_SHARDS --data.val x/val")
    assert next_command(["s3://x/train/", "s3://x/val"]).endswith("--data.train s3://x/train --data.val s3://x/val")
    for location in ("s3://key:secret@bucket/shards", "https://host/shards?signature=secret"):
        told = next_command([location])
        assert "--data.train" in told
        assert "secret" not in told


def test_grey_images_make_a_grey_data_set(root, tmp_path):
    for number, path in enumerate(sorted((root / "images").rglob("*.jpg"))):
        pixels = np.asarray(Image.fromarray(image_array(number)).convert("L"))
        path.write_bytes(encoded(pixels, "JPEG"))
    account = write(root, tmp_path / "out")
    assert Manifest.load(tmp_path / "out").channels == 1
    assert "16x12, grey; original encoding" in account
