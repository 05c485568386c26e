import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.labels import Palette
from unetdist.errors import ConfigError, DataError
from unetdist.inference import InferenceConfig
from unetdist.predict import find_device, find_jobs, predict_files, predict_image, read_upright, write_png
from unetdist.saved_model import SavedModel

PALETTE = Palette.from_records(
    [
        {"index": 0, "id": 3, "name": "dark", "color": [10, 10, 90]},
        {"index": 1, "id": 200, "name": "bright", "color": [250, 250, 0]},
        {"index": None, "id": 7, "name": "void", "color": [0, 0, 0]},
    ]
)


@dataclass
class Channels:
    in_channels: int


class Threshold(nn.Module):
    """Class 1 where the first channel is above 127."""

    def __init__(self, channels=3):
        super().__init__()
        self.config = Channels(channels)

    def forward(self, image):
        assert image.shape[:2] == (1, self.config.in_channels)
        bright = (image[:, :1].float() > 127).float()
        return torch.cat([1 - bright, bright], dim=1)


@pytest.fixture
def saved():
    return SavedModel(Threshold(), PALETTE, None, {})


def bright_corner(height=20, width=30):
    """Bright at the upper left, so that every turn and flip of it differs."""
    image = np.full((height, width), 20, np.uint8)
    image[: height // 2, : width // 3] = 230
    return image


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)


def ids_of(image):
    return np.where(np.asarray(image) > 127, 200, 3)


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def test_ids_are_those_of_the_labels_file(tmp_path, saved):
    save(tmp_path / "in.png", bright_corner())
    assert predict_files(saved, tmp_path / "in.png", tmp_path / "out") == []
    mode, ids = read(tmp_path / "out/in_ids.png")
    assert mode == "L"
    assert np.array_equal(ids, ids_of(bright_corner()))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in_ids.png"]


def test_folders_are_kept(tmp_path, saved):
    for name in ("b/c.d.tif", "b/e.bmp", "f.gif", "g.webp", "h.JPG", "i.png"):
        save(tmp_path / "in" / name, bright_corner())
    (tmp_path / "in/notes.txt").write_text("no image")
    save(tmp_path / "in/.cache/j.png", bright_corner())
    predict_files(saved, tmp_path / "in", tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert files == {f"{stem}_ids.png" for stem in ("b/c.d", "b/e", "f", "g", "h", "i")}


def as_16_bit(image):
    return Image.fromarray(image.astype(np.uint16) * 257)


def with_alpha(image):
    return Image.fromarray(image).convert("RGBA")


def with_palette(image):
    return Image.fromarray(image).convert("P")


@pytest.mark.parametrize("change", [Image.fromarray, as_16_bit, with_alpha, with_palette])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_kind_of_image_becomes_the_models_channels(tmp_path, change, channels):
    save(tmp_path / "in.png", change(bright_corner()))
    saved = SavedModel(Threshold(channels), PALETTE, None, {})
    predict_files(saved, tmp_path / "in.png", tmp_path)
    assert np.array_equal(read(tmp_path / "in_ids.png")[1], ids_of(bright_corner()))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_results_stand_as_a_viewer_shows_the_image(tmp_path, saved, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "in.jpg"
    save(path, Image.fromarray(bright_corner()).convert("RGB"), exif=exif, quality=95, subsampling=0)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_upright(path, 3), shown)
    predict_files(saved, path, tmp_path)
    assert np.array_equal(read(tmp_path / "in_ids.png")[1], ids_of(shown[..., 0]))


def test_resize_of_the_training_is_applied_and_the_size_is_the_images_own(saved):
    seen = []
    saved.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    image = bright_corner(40, 60)[..., None].repeat(3, axis=2)
    pred = predict_image(SavedModel(saved.model, PALETTE, (12, 8), {}), image)
    assert seen == [(1, 3, 8, 12)]
    assert pred.shape == (40, 60)
    assert pred.dtype == np.uint8
    assert (pred == (image[..., 0] > 127)).mean() > 0.95


def test_windows_reach_every_pixel_once(tmp_path, saved):
    seen = []
    saved.model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    save(tmp_path / "in.png", bright_corner(50, 70))
    inference = InferenceConfig(window=(16, 24), window_batch=1)
    predict_files(saved, tmp_path / "in.png", tmp_path, inference=inference)
    assert np.array_equal(read(tmp_path / "in_ids.png")[1], ids_of(bright_corner(50, 70)))
    assert set(seen) == {(1, 3, 16, 24)}


def test_overlay_has_the_colors_of_the_classes(tmp_path, saved):
    save(tmp_path / "in.png", bright_corner())
    predict_files(saved, tmp_path / "in.png", tmp_path, overlay=True)
    mode, drawn = read(tmp_path / "in_overlay.png")
    assert mode == "RGB"
    assert (drawn == PALETTE.colors[0]).all(axis=-1).any()
    assert (drawn == PALETTE.colors[1]).all(axis=-1).any()


def test_files_that_cannot_be_read_are_gathered_and_the_rest_is_done(tmp_path, saved):
    save(tmp_path / "in/a.png", bright_corner())
    (tmp_path / "in/b.png").write_bytes(b"no image")
    whole = (tmp_path / "in/a.png").read_bytes()
    (tmp_path / "in/c.png").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "in/d.png", bright_corner())
    failures = predict_files(saved, tmp_path / "in", tmp_path / "out")
    assert [failure.source.name for failure in failures] == ["b.png", "c.png"]
    assert failures[0].reason == "image cannot be read (no known image format); replace the file."
    assert "cannot be read" in failures[1].reason
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_ids.png", "d_ids.png"]


def test_a_file_that_went_away_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read .*No such file.*replace the file"):
        read_upright(tmp_path / "gone.png", 3)


def test_an_image_beyond_pils_limit_is_named(tmp_path, monkeypatch):
    save(tmp_path / "in.png", bright_corner())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="cannot be read .*exceeds limit.*cut it into parts"):
        read_upright(tmp_path / "in.png", 3)


def test_results_of_an_earlier_run_are_no_input(tmp_path, saved):
    save(tmp_path / "in/a.png", bright_corner())
    for _ in range(2):
        predict_files(saved, tmp_path / "in", tmp_path / "in/out")
    assert [path.name for path in (tmp_path / "in/out").iterdir()] == ["a_ids.png"]


def test_missing_input(tmp_path):
    with pytest.raises(DataError, match=r"nothing: does not exist; give --input"):
        find_jobs(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_every_kind_of_picture_that_can_be_sharded_is_found(tmp_path, suffix):
    (tmp_path / f"a{suffix.upper()}").touch()
    assert len(find_jobs(tmp_path, tmp_path / "out")) == 1


def test_no_images(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("")
    with pytest.raises(DataError, match=r"in: no images in it; looked for .jpg, .*\.webp"):
        find_jobs(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("out", [".", "in"])
def test_input_inside_output(tmp_path, out):
    save(tmp_path / "in/a.png", bright_corner())
    with pytest.raises(DataError, match="in: lies in the output folder .*; give --out another folder"):
        find_jobs(tmp_path / "in", tmp_path / out)


def test_two_images_of_one_name(tmp_path):
    save(tmp_path / "in/a.jpg", bright_corner())
    save(tmp_path / "in/a.png", bright_corner())
    with pytest.raises(DataError, match=r"a.png: this and .*a.jpg would both write .*a_ids.png; rename one"):
        find_jobs(tmp_path / "in", tmp_path / "out")


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="a_ids.png: cannot be written .*; make room or give --out"):
        write_png(tmp_path / "out/a_ids.png", bright_corner())


def test_unusable_device():
    with pytest.raises(ConfigError, match=r"--device \(gpu\) cannot be used here: .*; use --device cpu"):
        find_device("gpu")
    assert find_device("cpu") == torch.device("cpu")


def test_script_says_what_is_wrong_without_a_traceback(tmp_path):
    script = Path(__file__).parents[1] / "launch/predict.py"
    args = ["--model", str(tmp_path), "--input", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "does not exist; give --model the folder of a trained model" in done.stderr
