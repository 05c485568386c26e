"""Sets of files as people have them: images turned by EXIF, links, copies, names and label files of every kind."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.commands.test_shard import run
from tests.sharding.test_first_look import write_pair
from tests.synthetic import settings_of
from unetdist.cli import settings
from unetdist.data.manifest import Manifest
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples
from unetdist.errors import ConfigError, DataError
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

LABELS = "0 0 0 background\n255 0 0 thing\n"


def shard(root, *options, out="out"):
    """Run the command on root/images and root/masks."""
    labels = root / "Labels.txt"
    if not labels.exists():
        labels.write_text(LABELS)
    folders = ["--images", root / "images", "--masks", root / "masks"]
    run(*folders, "--labels", labels, "--out", root / out, "--workers", 1, *options)


def loaded(folder):
    """Image and mask of each sample of a folder of shards, by key."""
    manifest = Manifest.load(folder)
    reader = ShardReader(folder, manifest)
    samples = Samples(reader, channels=3, num_classes=manifest.num_classes)
    return {reader.key(number): samples.load(number) for number in range(manifest.num_samples)}


def fits(image, mask):
    """Whether the white part of the image is where the mask says so, but for what JPEG blurs."""
    return np.mean((image[..., 0] > 128) == (mask == 1)) > 0.95


@pytest.mark.parametrize("drawn", ["raw", "upright"])
def test_no_image_is_turned_against_its_mask(tmp_path, drawn):
    for orientation in range(1, 9):
        write_pair(tmp_path, f"square{orientation}", drawn=drawn, orientation=orientation)
    for orientation in (2, 3, 4):
        write_pair(tmp_path, f"wide{orientation}", drawn=drawn, orientation=orientation, size=(12, 16))
    with pytest.raises(DataError, match=r"(?s)10 problems.*EXIF orientation.*--exif raw or --exif upright") as caught:
        shard(tmp_path)
    assert "square1" not in str(caught.value)
    shard(tmp_path, "--exif", drawn)
    assert all(fits(*pair) for pair in loaded(tmp_path / "out").values())
    assert len(loaded(tmp_path / "out")) == 11

    write_pair(tmp_path, "tells_it", drawn=drawn, orientation=6, size=(12, 16))
    shard(tmp_path, out="decided")
    assert len(loaded(tmp_path / "decided")) == 12
    assert all(fits(*pair) for pair in loaded(tmp_path / "decided").values())


def test_processes_decide_alike(tmp_path):
    for number in range(6):
        write_pair(tmp_path, f"square{number}", drawn="raw", orientation=3)
    write_pair(tmp_path, "tells_it", drawn="raw", orientation=6, size=(12, 16))
    shard(tmp_path, "--samples-per-shard", 2)
    for rank in range(3):
        shard(tmp_path, "--samples-per-shard", 2, "--rank", rank, "--world-size", 3, out="shared")
    tars = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert len(tars) == 4
    for name in [*tars, "manifest.json"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


def write_plain(root, count=6, *, start=0):
    """Images of noise with masks of the ids 0 and 1."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"images/{number:02d}.png")
        Image.fromarray(random.integers(0, 2, (16, 16), np.uint8)).save(root / f"masks/{number:02d}.png")


def test_links_add_no_samples(tmp_path):
    write_plain(tmp_path)
    for folder in ("images", "masks"):
        (tmp_path / folder / "loop").symlink_to(".")
        (tmp_path / folder / "all").symlink_to("..")
        (tmp_path / folder / "again").symlink_to(tmp_path / folder)
    shard(tmp_path)
    assert sorted(loaded(tmp_path / "out")) == [f"{number:02d}" for number in range(6)]


def test_copies_are_told_and_never_parted(tmp_path, capfd):
    write_plain(tmp_path, 12)
    for number in range(12):
        for folder in ("images", "masks"):
            shutil.copy(tmp_path / folder / f"{number:02d}.png", tmp_path / folder / f"copy{number:02d}.png")
    shard(tmp_path, "--val-fraction", 0.3)
    assert "12 images have the same bytes as others" in capfd.readouterr().err
    train, val = (set(loaded(tmp_path / "out" / part)) for part in ("train", "val"))
    assert len(train) + len(val) == 24
    assert all((f"copy{key}" in val) == (key in val) for key in map("{:02d}".format, range(12)))
    (tmp_path / "val.txt").write_text("00\ncopy01\n")
    shard(tmp_path, "--val-list", tmp_path / "val.txt", out="list")
    assert "2 of 2 validation images are also in the training set" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["0 background\n1 thing\n", "background\nthing\n", "id,name\n0,background\n1,thing\n"])
def test_masks_of_ids_need_no_colours(tmp_path, text, capfd):
    write_plain(tmp_path)
    (tmp_path / "Labels.txt").write_text(text)
    shard(tmp_path)
    assert "0 is background, ..., 1 is thing" in capfd.readouterr().err
    for key, (_, mask) in loaded(tmp_path / "out").items():
        assert np.array_equal(mask, np.asarray(Image.open(tmp_path / f"masks/{key}.png")))
    labels = Manifest.load(tmp_path / "out").palette_records
    assert [label["name"] for label in labels] == ["background", "thing"]


def test_masks_of_colours_need_them(tmp_path):
    write_plain(tmp_path)
    (tmp_path / "Labels.txt").write_text("0 background\n1 thing\n")
    with pytest.raises(ConfigError, match="has none; write 'R G B name' lines"):
        shard(tmp_path, "--mask-format", "color")
    for path in (tmp_path / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.stack([ids * 255, ids, ids], axis=2)).save(path)
    with pytest.raises(DataError, match="write 'R G B name' lines to the label file"):
        shard(tmp_path)


def test_data_of_which_all_is_ignored_are_refused(tmp_path):
    write_plain(tmp_path)
    (tmp_path / "Labels.txt").write_text("0 0 0 0 background\n1 255 0 0 thing\n255 9 9 9 void\n")
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((16, 16), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="all pixels of the masks are ignored"):
        shard(tmp_path, "--ignore", "void")


def test_training_on_ignored_pixels_alone_is_refused(tmp_path):
    """Shards of a former version, which wrote them."""
    write_plain(tmp_path)
    shard(tmp_path)
    manifest = Manifest.load(tmp_path / "out")
    ignored = replace(manifest, class_pixels=(0, 0), class_images=(0, 0), ignored_pixels=manifest.num_pixels)
    ignored.save(tmp_path / "out")
    values = settings_of(tmp_path / "out", None, tmp_path / "runs")
    with pytest.raises(DataError, match="out: all pixels of its masks are ignored"):
        build_trainer(settings.from_mapping(Config, values))
