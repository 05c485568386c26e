from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.predict.export.models import picture, saved_model
from tests.synthetic import write_shards
from unetdist.errors import DataError
from unetdist.predict.export.check_images import find_check_images

NOWHERE = Path("nowhere/best")


def test_shards_with_their_masks(tmp_path):
    write_shards(tmp_path, 7)
    of, pictures = find_check_images(saved_model(), NOWHERE, str(tmp_path), limit=6)
    assert (of, len(pictures)) == (str(tmp_path), 6)
    for index, found in enumerate(pictures):
        assert found.image.equal(picture(index).image)
        assert found.mask.equal(picture(index).mask)


def test_the_size_that_the_model_was_trained_at(tmp_path):
    write_shards(tmp_path, 1)
    _, [found] = find_check_images(saved_model(resize=(16, 12)), NOWHERE, str(tmp_path), limit=6)
    assert found.image.shape == (1, 3, 12, 16)
    assert found.image.dtype == torch.uint8
    assert found.mask.shape == (1, 12, 16)


def test_an_image_and_a_folder_of_images(tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (8, 6), (len(name), 2, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    _, pictures = find_check_images(saved_model(), NOWHERE, str(tmp_path), limit=6)
    assert [found.image.shape for found in pictures] == [(1, 3, 6, 8)] * 2
    assert pictures[0].mask is None
    _, [found] = find_check_images(saved_model(in_channels=1), NOWHERE, str(tmp_path / "a.png"), limit=6)
    assert found.image.shape == (1, 1, 6, 8)


def test_the_validation_set_of_the_run_else_shapes(tmp_path, caplog):
    write_shards(tmp_path / "val", 2)
    settings = tmp_path / "run/config.yaml"
    settings.parent.mkdir()
    settings.write_text(f"data:\n  val: {tmp_path / 'val'}\n")
    of, pictures = find_check_images(saved_model(), tmp_path / "run/best", None, limit=9)
    assert (of, len(pictures)) == (f"{tmp_path / 'val'} (data.val of the run)", 2)
    settings.write_text(f"data:\n  val: {tmp_path / 'gone'}\n")
    of, pictures = find_check_images(saved_model(in_channels=4), tmp_path / "run/best", None, limit=9)
    assert of == "drawn shapes; give --check for real images"
    assert [found.image.shape for found in pictures] == [(1, 4, 96, 128)] * 8
    assert "the run's data.val cannot be read" in caplog.text


def test_what_holds_no_pictures_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no images and no shards in it; give another folder"):
        find_check_images(saved_model(), NOWHERE, str(tmp_path), limit=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.png: .+"):
        find_check_images(saved_model(), NOWHERE, str(tmp_path / "broken.png"), limit=1)


def test_shards_of_other_classes(tmp_path):
    manifest = write_shards(tmp_path / "shards", 1)
    records = [{**record, "name": record["name"].replace("road", "street")} for record in manifest.palette_records]
    replace(manifest, palette_records=tuple(records)).save(tmp_path / "shards")
    with pytest.raises(DataError, match=r"has other classes than the model; give shards of its own labels"):
        find_check_images(saved_model(), NOWHERE, str(tmp_path / "shards"), limit=1)
