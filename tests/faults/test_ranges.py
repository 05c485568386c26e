"""The range of 12-bit images travels: shards, manifest, run, model, prediction, Python, card and export."""

import io
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sharding.picture_folders import encoded
from tests.sharding.test_foreign import MASK, index, pack
from tests.synthetic import settings_of
from unetdist import UNet
from unetdist.__main__ import run
from unetdist.cli import settings
from unetdist.data.decode import decode_image
from unetdist.data.image_file import HIGH_BYTE, read_image
from unetdist.data.manifest import Manifest
from unetdist.errors import ConfigError, DataError
from unetdist.model.saved_model import load_model
from unetdist.predict import predict_files
from unetdist.predict.export.graph import metadata_of
from unetdist.train.build import build_trainer
from unetdist.train.config import Config

TWELVE_BITS = (0.0, 4095.0)


@pytest.fixture
def root(tmp_path) -> Path:
    """Grey images of 12 bits in 16-bit PNGs; bright where the mask is."""
    for number in range(4):
        random = np.random.default_rng(number)
        classes = (np.indices((16, 24)).sum(0) // 8 + number) % 2
        values = (classes * 2800 + random.integers(0, 800, classes.shape)).astype(np.uint16)
        for name, data in (("images", encoded(values)), ("masks", encoded((classes * 255).astype(np.uint8)))):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").write_bytes(data)
    (tmp_path / "Labels.txt").write_text("0 0 0 dark\n255 255 255 bright\n")
    return tmp_path


def shard(root: Path, out: str, *options: object) -> Manifest:
    words = ["--images", root / "images", "--masks", root / "masks", "--labels", root / "Labels.txt"]
    run(
        [
            "shard",
            *(str(word) for word in [*words, "--workers", 1, "--samples-per-shard", 2, "--out", root / out, *options]),
        ]
    )
    return Manifest.load(root / out)


def predict(monkeypatch, *words: object) -> int:
    return run(["predict", *map(str, words), "--device", "cpu"])


def test_the_range_travels_from_sharding_to_prediction(root, monkeypatch):
    assert shard(root, "train", "--image-range", 0, 4095).image_range == TWELVE_BITS
    values = settings_of(root / "train", root / "train", root / "runs", model={"in_channels": 1})
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    folder = root / "runs/tiny/last"
    saved = load_model(folder)
    assert saved.image_range == tuple(json.loads((folder / "config.json").read_text())["image_range"]) == TWELVE_BITS
    assert json.loads(metadata_of(saved, argmax=False, precision="fp32")["image_range"]) == [0, 4095]
    assert "0 to 4095" in (folder / "README.md").read_text()

    seen: list[np.ndarray] = []
    saved.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    for source in ("train", "images"):
        predict_files(saved, root / source, root / source / "out")
    shards, files = sorted(map(bytes, seen[:4])), sorted(map(bytes, seen[4:]))
    assert shards == files
    assert max(map(max, shards)) > 200

    assert predict(monkeypatch, "--model", folder, "--input", root / "images", "--out", root / "ids") == 0
    model = UNet.from_pretrained(folder)
    for number in range(2):
        path = root / f"images/{number}.png"
        ids = np.asarray(Image.open(root / f"ids/{number}_ids.png"))
        with Image.open(path) as image:
            array = np.asarray(image)
            for form in (path, image, array):
                assert np.array_equal(model.palette.to_ids(model.predict(form)), ids)
    model.save_pretrained(root / "copy")
    assert load_model(root / "copy").image_range == TWELVE_BITS


def test_a_model_that_does_not_know_says_what_it_lacks(root, monkeypatch, capsys):
    shard(root, "train", "--image-range", 0, 4095)
    manifest = Manifest.load(root / "train")
    replace(manifest, image_range=None).save(root / "train")  # as it was before manifests said so
    values = settings_of(root / "train", None, root / "runs", model={"in_channels": 1})
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    words = ["--model", root / "runs/tiny/last", "--input", root / "images", "--out", root / "out"]
    assert predict(monkeypatch, *words) == 1
    told = " ".join("".join(capsys.readouterr()).split())
    assert "the model does not say which values are black and white" in told
    assert "--image-range LOW HIGH" in told
    assert predict(monkeypatch, *words, "--overwrite", "--image-range", 0, 4095) == 0
    with pytest.raises(ConfigError, match=r"--image-range \(9 9\) must ascend"):
        predict(monkeypatch, *words, "--image-range", 9, 9)


def test_an_old_manifest_says_nothing_of_a_range(root):
    shard(root, "train", "--image-range", 0, 4095)
    path = root / "train/manifest.json"
    record = json.loads(path.read_text())
    del record["image_range"], record["sha256_of_this"]
    path.write_text(json.dumps(record))
    assert Manifest.load(root / "train").image_range is None


def test_little_of_16_bits_stops_with_the_line_to_type(root):
    with pytest.raises(DataError, match=r"15 of 256 grey levels.*--image-range 0 4095"):
        shard(root, "train")
    assert not (root / "train").exists()
    # One image of 8 bits among those that are looked at first: then all are measured while they are written.
    Image.new("L", (24, 16)).save(root / "images/8.png")
    Image.new("L", (24, 16)).save(root / "masks/8.png")
    with pytest.raises(DataError, match=r"little of 16 bits is used(.|\n)*--image-range 0 4095"):
        shard(root, "train", "--skip-bad")
    assert not (root / "train/manifest.json").exists()
    assert shard(root, "train", "--image-range", 0, 4095).image_range == TWELVE_BITS


def test_auto_is_the_same_on_any_number_of_processes(root):
    typed = shard(root, "typed", "--image-range", 0, 4095)
    alone = shard(root, "alone", "--image-range", "auto")
    half = ["--image-range", "auto", "--world-size", 2, "--rank"]
    with pytest.raises(DataError, match="no manifest.json here"):
        shard(root, "shared", *half, 1)
    shared = shard(root, "shared", *half, 0)
    assert alone.image_range == shared.image_range == TWELVE_BITS
    for name in ("000000.tar", "000001.tar"):
        assert len({(root / out / name).read_bytes() for out in ("typed", "alone", "shared")}) == 1
    assert typed.shards == alone.shards == shared.shards


@pytest.mark.parametrize("words", [("auto",), (0, 255)])
def test_deep_files_of_small_values_are_predicted_as_they_were_sharded(root, words):
    for path in (root / "images").iterdir():
        path.write_bytes(encoded(np.asarray(Image.open(path)) >> 4))
    image_range = shard(root, "train", "--image-range", *words).image_range
    assert image_range == (0, 255)
    data = (root / "images/0.png").read_bytes()
    assert np.array_equal(read_image(data, 1, image_range)[..., 0], np.asarray(Image.open(io.BytesIO(data))))


def test_deeper_integers_without_a_range_are_not_told_of_16_bits(root):
    for path in (root / "images").iterdir():
        path.write_bytes(encoded(np.asarray(Image.open(path)).astype(np.int32), "TIFF"))
    with pytest.raises(DataError, match=r"int32 pixels of .*--image-range") as told:
        shard(root, "train")
    assert "65535" not in str(told.value)


def test_one_flat_tile_does_not_stop_a_set_of_floats(root):
    for path in (root / "images").iterdir():
        values = np.asarray(Image.open(path)).astype(np.float32)
        path.write_bytes(encoded(values / 4096 if path.stem == "0" else values, "TIFF"))
    assert shard(root, "train", "--image-range", 0, 3000).num_samples == 4


def test_images_of_8_bits_need_no_range(root):
    for path in (root / "images").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) >> 4).astype(np.uint8)).save(path)
    assert shard(root, "a").image_range is None
    assert shard(root, "b", "--image-range", 0, 4095).image_range is None
    assert shard(root, "c", "--image-range", "auto").image_range is None
    with pytest.raises(ConfigError, match=r"--image-range \(automatic\) must be LOW HIGH.*or auto"):
        shard(root, "d", "--image-range", "automatic")


def test_tars_that_stay_as_they_are_are_read_by_their_high_byte(tmp_path):
    deep = encoded(np.linspace(0, 65535, MASK.size).reshape(MASK.shape).astype(np.uint16))
    pack(tmp_path / "a.tar", ["a"], image=deep)
    index(tmp_path)
    image_range = Manifest.load(tmp_path).image_range
    assert image_range == HIGH_BYTE
    assert np.array_equal(read_image(deep, 1, image_range), decode_image(deep, 1))
    values = np.linspace(0, 1, MASK.size).astype(np.float32).reshape(MASK.shape)
    pack(tmp_path / "b/b.tar", ["b"], image=encoded(values, "TIFF"))
    with pytest.raises(DataError, match=r"float32 pixels .*write shards of its images"):
        index(tmp_path / "b")


def test_tars_of_12_bits_are_indexed_and_told_to_lose_detail(tmp_path, caplog):
    deep = encoded(np.linspace(0, 3600, MASK.size).reshape(MASK.shape).astype(np.uint16))
    pack(tmp_path / "a.tar", ["a"], image=deep)
    index(tmp_path)
    image_range = Manifest.load(tmp_path).image_range
    assert image_range == HIGH_BYTE
    assert read_image(deep, 1, image_range).max() == 3600 >> 8
    (told,) = [message for message in caplog.messages if "the images in these tars lose detail" in message]
    assert "15 of 256" in told
    assert "unpack the tars" in told
    assert "--images DIR --masks DIR" in told
    assert "--image-range 0 4095" in told


def test_what_is_no_image_by_its_suffix_is_told(root, caplog):
    (root / "images/0.png").rename(root / "images/0.jfif")
    (root / "images/1.png").rename(root / "images/1.dat")
    shard_free = replace(MODEL, image_range=TWELVE_BITS)
    with caplog.at_level(logging.WARNING):
        assert predict_files(shard_free, root / "images", root / "out") == []
    assert re.search(r"skipped 1 files without an image suffix, the first is .*1\.dat", caplog.text)
    assert {path.name for path in (root / "out").glob("*_ids.png")} == {f"{n}_ids.png" for n in (0, 2, 3)}


def _model():
    from tests.predict.test_pipeline import PALETTE, Threshold
    from unetdist.model.saved_model import SavedModel

    return SavedModel(Threshold(1), PALETTE, None, {})


MODEL = _model()
