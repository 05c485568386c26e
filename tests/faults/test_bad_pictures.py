"""A picture that cannot be read costs that picture: no traceback, no gigabytes, no end of the command."""

import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.small_shards import NUM_CLASSES, encode_png, numbered_sample, write_small_shards
from tests.faults import damaged
from tests.faulty_server import serve
from unetdist.__main__ import run
from unetdist.data import image_file
from unetdist.data.augment import Augmenter
from unetdist.data.batch import Batch
from unetdist.data.config import AugmentConfig
from unetdist.data.decode import decode_image, decode_mask
from unetdist.data.image_file import read_image
from unetdist.data.labels import Palette
from unetdist.data.labels.masks import read_listed_mask, read_mask
from unetdist.data.reader import ShardReader
from unetdist.data.samples import Samples, TrainDataset
from unetdist.data.workers import MicroBatch
from unetdist.errors import CheckpointError, DataError
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import load_model, save_model
from unetdist.model.unet import UNet
from unetdist.predict import pipeline
from unetdist.sharding.stored_image import store_image
from unetdist.storage import remote

PALETTE = Palette.from_records(
    [
        {"index": 0, "id": 0, "name": "dark", "color": [0, 0, 0]},
        {"index": 1, "id": 1, "name": "bright", "color": [255, 255, 255]},
    ]
)
DOORS = {
    "training image": lambda data: decode_image(data, 3),
    "training mask": decode_mask,
    "mask": lambda data: read_mask(data, PALETTE, unknown_colors="ignore"),
    "mask of a tar": partial(read_listed_mask, PALETTE, "auto", "ignore"),
    "sharding": lambda data: store_image(data, (24, 32), exif="raw"),
    "prediction": lambda data: read_image(data, 3, None),
}
MOST_S, MOST_MIB = 10, 200


@pytest.fixture(autouse=True)
def pillow_may_warn(recwarn):
    """Of what it then reads, or raises an error for."""


def judge(data):
    """What the doors say of it: pixels or a `DataError`, soon and in little memory."""
    said = []
    for name, door in DOORS.items():
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            door(data)
            said.append("read")
        except DataError as error:
            said.append(str(error))
        assert time.monotonic() - began < MOST_S, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MIB * 1024, name
    return said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(36))
def test_a_damaged_picture_is_an_error_of_that_picture(number):
    judge(damaged.damaged(number)[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", damaged.impossible())
def test_what_claims_gigabytes_is_refused_by_its_header(name):
    said = judge(damaged.impossible()[name])
    if name not in ("text.png", "profile.png"):  # whose pixels are good
        assert "read" not in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["image", "mask"])
def test_training_survives_them_all(tmp_path, part):
    good = [encode_png(pixels) for pixels in numbered_sample(0)]
    bad = list(damaged.impossible().values()) + [damaged.damaged(number)[1] for number in range(24)]
    encoded = {n: (data, good[1]) if part == "image" else (good[0], data) for n, data in enumerate(bad)}
    manifest = write_small_shards(tmp_path, [len(bad) + 1], encoded=encoded)
    samples = Samples(ShardReader(tmp_path, manifest), channels=3, num_classes=NUM_CLASSES)
    augmenter = Augmenter(AugmentConfig(), seed=0, class_pixels=manifest.class_pixels, mean=manifest.mean)
    dataset = TrainDataset(samples, augmenter, on_bad_sample="blank", blank_size=(12, 16))
    for number in range(len(bad)):
        batch = dataset[MicroBatch([(0, len(bad)), (0, number)])]
        assert isinstance(batch, Batch), batch
        assert batch.num_bad <= 1


@pytest.fixture
def model(tmp_path):
    config = UNetConfig(widths=(4, 8))
    network = UNet(config, num_classes=2, mean=[0.0] * 3, std=[255.0] * 3)
    save_model(tmp_path / "m", network.state_dict(), model=config, palette=PALETTE, resize=None, facts={})
    return tmp_path / "m"


def predict(*words):
    return run(["predict", *map(str, words)])


@pytest.mark.filterwarnings("ignore")
def test_bad_pictures_do_not_end_a_prediction(tmp_path, monkeypatch, model, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in damaged.impossible().items():
        (folder / f"bad_{name}").write_bytes(data)
    for name in ("a", "z"):
        Image.fromarray(damaged.PIXELS).save(folder / f"{name}.png")
    bad = len(damaged.impossible())
    for duplicate in ("bad_claims.jpg", "bad_claims.png", "bad_claims.gif", "bad_claims.bmp", "bad_claims.ppm"):
        (folder / duplicate).rename(folder / f"{duplicate.replace('.', '_')}{Path(duplicate).suffix}")
    assert predict("--model", model, "--input", folder, "--out", tmp_path / "out") == 1
    for name in ("a", "z"):
        assert np.asarray(Image.open(tmp_path / f"out/{name}_ids.png")).shape == (24, 32)
    told = capfd.readouterr().err
    read = len(list((tmp_path / "out").glob("*_ids.png"))) - 2
    assert f"{bad - read} of {bad + 2} images failed" in told.splitlines()[-1]
    assert "git lfs pull" in told
    assert "Traceback" not in told


def test_a_picture_that_needs_more_memory_than_there_is_fails_alone(tmp_path, monkeypatch, model, caplog):
    for name, size in (("a", 20), ("huge", 60), ("z", 24)):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    predict_images = pipeline.predict_images

    def scarce(saved, images, **options):
        if images[0].shape[0] == 60:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: 9 GB")
        return predict_images(saved, images, **options)

    monkeypatch.setattr(pipeline, "predict_images", scarce)
    saved = load_model(model, torch.device("cpu"))
    images = [str(tmp_path / f"{name}.png") for name in ("a", "huge", "z")]
    (failure,) = pipeline.predict_files(saved, images, tmp_path / "out")
    assert failure.source.endswith("huge.png")
    assert "--window" in failure.reason
    assert len(list((tmp_path / "out").glob("*_ids.png"))) == 2


def test_the_body_of_a_url_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MOST_BYTES", 1000)
    monkeypatch.setattr(remote, "_file_systems", {})
    (tmp_path / "long.png").write_bytes(bytes(10**6))
    (tmp_path / "short.png").write_bytes(bytes(1000))
    with serve(tmp_path) as server:
        for url in (server.url, f"file://{tmp_path}"):
            assert len(image_file.read_file(f"{url}/short.png")) == 1000
            with pytest.raises(DataError, match=r"long.png: is larger than"):
                image_file.read_file(f"{url}/long.png")


def test_weights_that_are_a_pointer_are_told_so(model):
    (model / "model.safetensors").write_bytes(damaged.POINTER)
    with pytest.raises(CheckpointError, match=r"model.safetensors was not fetched.*git lfs pull"):
        load_model(model)


def test_a_label_file_that_is_a_pointer_is_told_so(tmp_path):
    (tmp_path / "Labels.txt").write_bytes(damaged.POINTER)
    with pytest.raises(DataError, match=r"Labels.txt: the label file was not fetched.*git lfs pull"):
        Palette.read(tmp_path / "Labels.txt")
