"""Contenders deliver the same work; those whose packages are not installed are skipped."""

import importlib.util
from dataclasses import asdict

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.benchmarks import data_contenders, eval, train_contenders
from tests.benchmarks.data import CONTENDERS
from tests.benchmarks.data_contenders import Job, pairing_problem, shape_problem
from tests.benchmarks.harness import OURS
from tests.benchmarks.pictures import Size, parse_case, write_pictures, write_test_card
from tests.benchmarks.train import loss_problems
from tests.benchmarks.train_contenders import TrainJob
from unetdist.__main__ import run

pytestmark = pytest.mark.filterwarnings("default")  # Other people's packages warn of themselves.

MODULES = {
    "streaming": "streaming",
    "litdata": "litdata",
    "datasets": "datasets",
    "datasets-streaming": "datasets",
    "webdataset": "webdataset",
    "dali": "nvidia.dali",
    "dali-unfiltered": "nvidia.dali",
    "lightning": "lightning",
}


@pytest.fixture(scope="module", autouse=True)
def shards_in_this_process():
    """Shards are written in this process, which saves the start of another."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_contenders, "shard_dataset", lambda *words: run(["shard", *map(str, words)]))
        yield


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    write_test_card(folder / "pictures", Size(128, 96))
    return Job(str(folder / "pictures"), str(folder / "formats"), crop=64, batch_size=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, no_images):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "pictures", no_images, Size(32, 24), 6)
    return Job(str(folder / "pictures"), str(folder / "formats"), crop=16, batch_size=2)


def skip_unless_installed(name):
    if name in MODULES:
        pytest.importorskip(MODULES[name])


@pytest.mark.parametrize("name", [contender.name for contender in CONTENDERS])
def test_a_data_path_loads_the_test_card_and_is_timed(name, card):
    skip_unless_installed(name)
    job = asdict(card)
    found = data_contenders.check(name, job, job, 2, ["numpy"])
    assert found["versions"]["numpy"]
    times = data_contenders.measure(name, job, seconds=0.01)
    assert times["images"] >= 16
    assert times["seconds"] >= 0.01


def test_a_loader_that_pairs_or_crops_wrongly_is_found(card):
    images, masks = (np.asarray(part)[None] for part in next(data_contenders.CONTENDERS["files-opencv"](card)))
    assert pairing_problem(images, masks) is None
    assert "do not belong" in pairing_problem(images, np.roll(masks, 1, axis=-1))
    assert "flipped" in pairing_problem(images[:, :1].repeat(16, 1), masks[:, :1].repeat(16, 1))


def test_a_batch_of_the_wrong_kind_is_found(card):
    images, masks = np.zeros((1, 16, 64, 64, 3), np.uint8), np.zeros((1, 16, 64, 64), np.uint8)
    assert shape_problem(images, masks, card, 2) is None
    assert shape_problem(images, masks + 255, card, 2) is None
    assert "[9]" in shape_problem(images, masks + 9, card, 2)
    assert "float32" in shape_problem(images.astype(np.float32), masks, card, 2)
    assert "(16, 32, 64, 3)" in shape_problem(images[:, :, :32], masks[:, :, :32], card, 2)


def test_camera_files_are_kept_byte_for_byte_and_turned_ones_left_out(tmp_path, no_images):
    (tmp_path / "camera").mkdir()
    for name, turned in (("a", 1), ("b", 6)):
        exif = eval.Image.Exif()
        exif[274] = turned
        eval.Image.new("RGB", (40, 30)).save(tmp_path / "camera" / f"{name}.JPG", exif=exif)
    no_images.images = tmp_path / "camera"
    try:
        write_pictures(tmp_path / "out", no_images, parse_case("original:16")[0], 2)
    finally:
        no_images.images = None
    written = [path.read_bytes() for path in sorted((tmp_path / "out" / "images").iterdir())]
    assert written == [(tmp_path / "camera" / "a.JPG").read_bytes()] * 2
    with eval.Image.open(tmp_path / "out" / "masks" / "000000.png") as mask:
        assert mask.size == (40, 30)


@pytest.fixture
def train_job(pictures):
    shards = data_contenders.write_our_shards(pictures)
    yield asdict(TrainJob(pictures.pictures, shards, 16, 24, 2, num_classes=12, widths=[4, 8], lr=0.01))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_loops_that_are_installed_reach_the_same_loss(train_job, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    losses = {}
    for name in ("ours", "ours-off", "accelerate", "lightning", "milesial", "careful"):
        if name != "lightning" or importlib.util.find_spec("lightning"):
            found = train_contenders.check(name, train_job, 15, ["torch"])
            assert found["first_step_s"] > 0
            assert found["alone_images_per_s"] > 0
            losses[name] = found["loss"]
    assert loss_problems(losses) == {}
    assert all(loss < 2.4 for loss in losses.values())  # They began near log 12.


def test_a_loop_is_timed_after_its_workers_worked_ahead(train_job):
    found = train_contenders.measure("careful", train_job, seconds=0.01)
    assert found["seconds"] >= 0.01
    assert found["images"] >= 2
    assert found["peak_mib"] > 50


def test_a_loss_that_is_off_is_named():
    problems = loss_problems({"a": 1.0, "b": 1.1, "c": 1.6, "d": float("nan")})
    assert list(problems) == ["c", "d"]
    assert "1.600" in problems["c"]


def test_evaluation_and_prediction_count_the_same_pixels(pictures, tmp_path, no_images):
    job = {
        "pictures": pictures.pictures,
        "shards": data_contenders.write_our_shards(pictures),
        "model": str(eval.write_model(tmp_path / "model", no_images)),
        "batch_size": 2,
        "num_workers": 0,
        "precision": "fp32",
    }
    counts = [eval.evaluate(name, job) for name in (OURS, "plain", "plain-best")]
    counts += [eval.predict(name, job) for name in (OURS, "shards", "plain")]
    first = np.array(counts[0]["confusion"])
    assert first.sum() == 6 * 32 * 24
    for found in counts:
        assert eval.count_problem(np.array(found["confusion"]), first) is None
        assert found["images"] == 6
        assert found["seconds"] > 0
        assert found["peak_mib"] > 50
    assert "counts 0 pixels" in eval.count_problem(first * 0, first)
    assert "another class" in eval.count_problem(np.roll(first, 1, axis=1), first)
