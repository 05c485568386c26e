import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image, ImageOps
from torch import nn

from tests.distributed.launcher import run_ranks
from unetdist.__main__ import run
from unetdist.data.labels import Palette
from unetdist.distributed.collectives import World
from unetdist.errors import ConfigError, DataError
from unetdist.model.config import InferenceConfig, UNetConfig
from unetdist.model.saved_model import SavedModel, save_model
from unetdist.model.unet import UNet
from unetdist.predict import Outputs, pipeline, predict_files, read_picture
from unetdist.storage import remote

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


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


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
    assert names_in(tmp_path / "out") == ["in_ids.png"]


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
    saved = SavedModel(Threshold(channels), PALETTE, None, {}, image_range=(0.0, 65535.0))
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
    assert np.array_equal(read_picture(path, 3).pixels, shown)
    predict_files(saved, path, tmp_path)
    assert np.array_equal(read(tmp_path / "in_ids.png")[1], ids_of(shown[..., 0]))


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
    predict_files(saved, tmp_path / "in.png", tmp_path, outputs=Outputs(overlay=True))
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
    assert [Path(failure.source).name for failure in failures] == ["b.png", "c.png"]
    assert failures[0].reason == "image cannot be read (no known image format); replace the file."
    assert "cannot be read" in failures[1].reason
    assert names_in(tmp_path / "out") == ["a_ids.png", "d_ids.png"]


def test_a_url_that_does_not_answer_is_named_once(tmp_path, saved, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    (tmp_path / "all.txt").write_text("http://127.0.0.1:9/a.png\n")
    (failure,) = predict_files(saved, tmp_path / "all.txt", tmp_path / "out")
    assert failure.source == "http://127.0.0.1:9/a.png"
    assert failure.reason.startswith("could not be read in 1 attempts")


def test_results_of_an_earlier_run_are_no_input(tmp_path, saved):
    save(tmp_path / "in/a.png", bright_corner())
    for _ in range(2):
        predict_files(saved, tmp_path / "in", tmp_path / "in/out")
    assert names_in(tmp_path / "in/out") == ["a_ids.png"]


def test_script_says_what_is_wrong_without_a_traceback(tmp_path):
    script = Path(__file__).parents[2] / "launch/predict.py"
    args = ["--model", str(tmp_path), "--input", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "has no trained weights yet" in done.stderr


def write_folder(folder, count=5):
    for index in range(count):
        save(folder / f"{index}.png", np.roll(bright_corner(20, 30 + index // 3), index, axis=1))


def changed(folder, action):
    """Names of the results that `action` wrote."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    action()
    return sorted(path.name for path in folder.glob("*.png") if path.stat().st_mtime_ns != before.get(path.name))


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path, saved, caplog, monkeypatch):
    monkeypatch.setattr("unetdist.cli.logs.logger.propagate", True)
    source, out = tmp_path / "in", tmp_path / "out"
    write_folder(source)
    predict_files(saved, source, out)
    (out / "3_ids.png").unlink()
    with caplog.at_level("INFO"):
        assert changed(out, lambda: predict_files(saved, source, out)) == ["3_ids.png"]
    assert "4 of 5 images have results already (--overwrite" in caplog.text
    assert "1 of 5 images predicted" in caplog.text
    assert len(changed(out, lambda: predict_files(saved, source, out, overwrite=True))) == 5
    color = Outputs(color=True)
    assert len(changed(out, lambda: predict_files(saved, source, out, outputs=color))) == 10


def test_a_result_that_cannot_be_written_ends_it(tmp_path, saved):
    write_folder(tmp_path / "in", 30)
    (tmp_path / "out/3_ids.png").mkdir(parents=True)
    with pytest.raises(DataError, match=r"3_ids.png: cannot be written .*; make room or give --out another"):
        predict_files(saved, tmp_path / "in", tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("option", ["batch_size", "num_workers"])
def test_numbers_below_one(tmp_path, saved, option):
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} \(0\).* must be 1 or more"):
        predict_files(saved, tmp_path, tmp_path / "out", **{option: 0})


def share(folder, files):
    """Collective."""
    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    pipeline.MEET_EVERY = 2
    before = pipeline.predict_images
    seen = []

    def counted(saved, images, **options):
        seen.extend(images)
        return before(saved, images, **options)

    pipeline.predict_images = counted
    saved = SavedModel(Threshold(), PALETTE, None, {})
    if files is not None:
        (folder / "in" / f"of_rank_{world.rank}.png").touch()
        try:
            predict_files(saved, folder / f"in{world.rank}", folder / "out", world=world)
        except DataError as error:
            return str(error)
    failures = predict_files(saved, folder / "in", folder / "out", world=world)
    return len(seen), [(Path(failure.source).name, failure.reason[:20]) for failure in failures]


def test_processes_share_the_pictures_and_tell_all_failures(tmp_path):
    write_folder(tmp_path / "in", 9)
    for name in ("1.png", "4.png"):
        (tmp_path / "in" / name).write_bytes(b"no image")
    ranks = run_ranks(share, 2, tmp_path, None)
    assert [told for _, told in ranks] == [[("4.png", "image cannot be read"), ("1.png", "image cannot be read")]] * 2
    assert [count for count, _ in ranks] == [4, 3]
    assert names_in(tmp_path / "out") == [f"{index}_ids.png" for index in (0, 2, 3, 5, 6, 7, 8)]


def test_processes_that_see_other_pictures_say_so(tmp_path):
    write_folder(tmp_path / "in", 1)
    write_folder(tmp_path / "in0", 2)
    write_folder(tmp_path / "in1", 3)
    for said in run_ranks(share, 2, tmp_path, "other"):
        assert "the processes see different images in --input" in said


def test_a_device_is_not_chosen_for_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"--device \(cpu\) is for one process"):
        script("--device", "cpu")


def test_a_device_that_cannot_be_used_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"--device \(gpu\) cannot be used here: .*cuda:1; use --device cpu"):
        script("--device", "gpu")


def script(*words):
    return run(["predict", "--model", "m", "--input", "i", "--out", "o", *words])


def test_the_script_on_two_processes_ends_well_or_with_every_failure(tmp_path):
    """The launcher hides the exit codes of its processes behind 0 and 1."""
    root = Path(__file__).parents[2]
    write_folder(tmp_path / "in", 3)
    unet = UNet(UNetConfig(widths=(4, 8), norm="group"), 2, [100.0] * 3, [50.0] * 3)
    architecture = {"model": unet.config, "palette": PALETTE, "resize": None, "facts": {}}
    save_model(tmp_path / "model", unet.state_dict(), **architecture)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [root / "configs/accelerate/cpu.yaml", "--num_processes", "2", root / "launch/predict.py"]
    command += ["--model", tmp_path / "model", "--input", tmp_path / "in", "--out", tmp_path / "out"]
    for expected in (0, 1):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == expected, done.stderr
        (tmp_path / "in/9.png").write_bytes(b"no image")
    assert "9.png: image cannot be read" in done.stderr
    assert len(names_in(tmp_path / "out")) == 3


def test_results_of_another_model_or_other_settings_are_not_mixed(tmp_path, saved):
    source, out = tmp_path / "in", tmp_path / "out"
    write_folder(source, 1)
    predict_files(saved, source, out)
    windows = InferenceConfig(window=(8, 8), window_batch=1)
    with pytest.raises(ConfigError, match=r"--out \(.*out\) has results of other inference; .*--overwrite"):
        predict_files(saved, source, out, inference=windows)
    saved.model.register_buffer("step", torch.tensor(1))
    with pytest.raises(ConfigError, match="has results of other weights; give another folder, or --overwrite"):
        predict_files(saved, source, out)
    assert predict_files(saved, source, out, overwrite=True) == []
    assert predict_files(saved, source, out) == []


def test_a_range_can_be_said_after_an_attempt_without_one(tmp_path, saved):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    values = np.linspace(0, 1023, 12).reshape(3, 4).astype(np.uint16)
    Image.fromarray(values).save(source / "a.png")
    unknown, known = replace(saved, image_range=None), replace(saved, image_range=(0.0, 1023.0))
    (failure,) = predict_files(unknown, source, out)
    assert "--image-range" in failure.reason
    assert predict_files(known, source, out) == []
    assert (out / "a_ids.png").is_file()
    assert predict_files(known, source, out) == []
    for other in (unknown, replace(saved, image_range=(0.0, 255.0))):
        with pytest.raises(ConfigError, match="has results of other image_range; give another folder"):
            predict_files(other, source, out)


def test_a_folder_that_cannot_be_written_to(tmp_path, saved):
    write_folder(tmp_path / "in", 1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"--out \(.*out\) cannot be written to .*; give another folder"):
        predict_files(saved, tmp_path / "in", tmp_path / "out")
