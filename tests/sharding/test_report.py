"""What a person reads at the end of an ingest."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sharding.ingested import samples_of, write
from tests.sharding.picture_folders import (
    COLORS,
    encoded,
    image_array,
    mask_array,
    write_folders,
)
from unetdist.data.decode import decode_mask
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError
from unetdist.sharding.describe import describe_problems, next_command
from unetdist.sharding.sources import Problem
from unetdist.storage.folders import open_folder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folders(tmp_path / "data")


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


def test_the_next_command_names_both_folders_where_both_are_written(root, tmp_path):
    train, val = tmp_path / "train", tmp_path / "val"
    assert next_command([str(train)]).endswith(f"--data.train {train} --data.val VALIDATION_SHARDS")
    assert next_command([str(val)]).endswith(f"--data.train TRAINING_SHARDS --data.val {val}")
    write(root, train)
    write(root, val)
    for folders in ([str(train)], [str(val)], [str(train), str(val)]):
        assert next_command(folders).endswith(f"--data.train {train} --data.val {val}")


def test_the_next_command_tells_no_secrets_and_heeds_no_slash_at_the_end(root, tmp_path):
    for location in ("s3://key:secret@bucket/shards", "https://host/shards?signature=secret"):
        told = next_command([location])
        assert "--data.train" in told
        assert "secret" not in told
    for name in ("train", "val"):
        write(root, tmp_path / name)
    train, val = (f"file://{tmp_path}/{name}" for name in ("train", "val"))
    for locations in ([f"{train}/"], [f"{val}/"], [f"{train}/", f"{val}/"]):
        assert next_command(locations).endswith(f"/train.py --data.train {train} --data.val {val}")


def test_grey_images_make_a_grey_data_set(root, tmp_path):
    for number, path in enumerate(sorted((root / "images").rglob("*.jpg"))):
        pixels = np.asarray(Image.fromarray(image_array(number)).convert("L"))
        path.write_bytes(encoded(pixels, "JPEG"))
    account = write(root, tmp_path / "out")
    assert Manifest.load(tmp_path / "out").channels == 1
    assert "16x12, grey; original encoding" in account
