import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

import unetdist
from tests.fake_hub import fake_hub
from tests.faulty_server import serve
from tests.tracking.samples import PALETTE, SCORES
from unetdist.data import drawing
from unetdist.errors import CheckpointError, ConfigError, DataError
from unetdist.model import unet
from unetdist.model.config import InferenceConfig, UNetConfig
from unetdist.model.saved_model import CONFIG_FILE, MODEL_FORMAT, load_model, save_model
from unetdist.predict import predict_image
from unetdist.predict.hub import UNet, card_of, pixels_of

FACTS = {"step": 7, "run": "shapes", "metric": {"name": "val/miou", "value": None}, "report": None}


@pytest.fixture
def folder(tmp_path):
    config = UNetConfig(widths=(4, 8), norm="group")
    torch.manual_seed(0)
    network = unet.UNet(config, 3, [100.0, 110.0, 120.0], [50.0, 60.0, 70.0])
    place = {"model": config, "palette": PALETTE, "resize": None, "facts": FACTS}
    save_model(tmp_path / "best", network.state_dict(), **place)
    return tmp_path / "best"


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)


def test_the_three_lines_give_what_predict_gives(folder, image):
    model = unetdist.UNet.from_pretrained(folder)
    pred = model.predict(image)
    assert pred.shape == (21, 30)
    assert pred.dtype == np.uint8
    assert np.array_equal(pred, predict_image(load_model(folder), image))
    assert model.classes == ("sky", "road", "tree")
    assert model.palette.colorize(pred).shape == (21, 30, 3)
    assert model.facts == FACTS


def test_it_is_a_module_like_any_other(folder, image):
    model, plain = UNet.from_pretrained(folder), load_model(folder).model
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert not model.training
    assert torch.equal(model(batch), plain(batch))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.train()
    model(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.predict(image).shape == (21, 30)
    assert model.training


def test_every_form_of_an_image_is_understood(folder, image, tmp_path):
    model = UNet.from_pretrained(folder)
    Image.fromarray(image).save(tmp_path / "x.png")
    forms = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        Image.fromarray(image),
        torch.from_numpy(image).permute(2, 0, 1),
        np.dstack([image, np.full((21, 30), 255, np.uint8)]),
    ]
    expected = model.predict(image)
    for form in forms:
        assert np.array_equal(model.predict(form), expected)
    with serve(tmp_path) as server:
        assert np.array_equal(model.predict(f"{server.url}/x.png"), expected)
    assert pixels_of(image[..., 0], 1).shape == (21, 30, 1)
    assert pixels_of(image[..., :1], 3).shape == (21, 30, 3)
    assert pixels_of(torch.from_numpy(image[..., 0]), 3).shape == (21, 30, 3)


def test_tensors_of_any_floats_are_understood(folder):
    ramp = torch.linspace(0, 255, 12).reshape(3, 4)
    expected = pixels_of(ramp, 1, (0, 255))
    for form in (ramp.double(), ramp.clone().requires_grad_()):
        assert np.array_equal(pixels_of(form, 1, (0, 255)), expected)
    assert np.array_equal(pixels_of(ramp.bfloat16(), 1, (0, 255)), pixels_of(ramp.bfloat16().float(), 1, (0, 255)))
    model = UNet.from_pretrained(folder)
    with pytest.raises(DataError, match=r"float32 values of 0 to 255.* set model\.image_range"):
        model.predict(ramp.bfloat16())
    model.image_range = (0, 255)  # as the message says
    assert np.array_equal(model.predict(ramp.bfloat16()), model.predict(pixels_of(ramp.bfloat16(), 1, (0, 255))))


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "P"])
def test_an_image_without_pixels_is_refused(mode):
    with pytest.raises(DataError, match="image has 0x5 pixels"):
        pixels_of(Image.new(mode, (0, 5)), 3, (0, 255))


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (np.zeros((4, 4, 3)), r"float64 values of 0 to 0, .*multiply it by 255"),
        (torch.ones(3, 4, 4), r"float32 values of 1 to 1, .*multiply it by 255"),
        (torch.full((3, 4, 4), 200.0), r"float32 values of 200 to 200, .*; give it as uint8"),
        (torch.full((3, 4, 4), 200), r"int64 values of 200 to 200, .*; give it as uint8"),
        (torch.full((3, 4, 4), -2.0), r"float32 values of -2 to -2, .*not normalised"),
        (np.zeros((3, 4, 5), np.uint8), r"\(3, 4, 5\); .*image\.transpose\(1, 2, 0\)"),
        (torch.zeros(6, 5, 3, dtype=torch.uint8), r"\(6, 5, 3\); .*image\.permute\(2, 0, 1\)"),
        (np.zeros((7, 7, 5), np.uint8), r"has 5 bands"),
        (np.zeros((0, 0, 3), np.uint8), r"of shape \(0, 0, 3\); give uint8"),
        (None, r"an image is of type NoneType; give a path, a URL"),
        ([Image.new("RGB", (4, 4))], r"an image is of type list; give a path, a URL"),
    ],
)
def test_what_is_no_image_is_refused_with_a_remedy(values, remedy):
    with pytest.raises(DataError, match=remedy):
        pixels_of(values, 3)


def test_an_absent_file_is_named(folder, tmp_path):
    model = UNet.from_pretrained(folder)
    for form in ("cat.jpg", Path("cat.jpg"), ["cat.jpg"]):
        with pytest.raises(DataError, match=r"^cat\.jpg: file not found in "):
            model.predict(form)


def test_a_list_gives_a_list_and_a_batch_gives_a_batch(folder, image, tmp_path):
    model = UNet.from_pretrained(folder)
    mirrored, small = image[:, ::-1], image[:10]
    Image.fromarray(small).save(tmp_path / "small.png")
    expected = [model.predict(each) for each in (image, mirrored, small, image)]
    for batch_size in (1, 2, 3):
        preds = model.predict([image, mirrored, tmp_path / "small.png", image], batch_size=batch_size)
        assert isinstance(preds, list)
        assert all(np.array_equal(pred, each) for pred, each in zip(preds, expected, strict=True))
    batch = np.stack([image, mirrored])
    assert np.array_equal(model.predict(batch), np.stack(expected[:2]))
    assert np.array_equal(model.predict(torch.from_numpy(batch).movedim(-1, 1), batch_size=2), np.stack(expected[:2]))
    assert model.predict([]) == []
    with pytest.raises(DataError, match=r"image 1 of the list: an image has float64 values"):
        model.predict([image, image / 255])
    with pytest.raises(ConfigError, match=r"batch_size \(0\)"):
        model.predict([image], batch_size=0)


def test_an_overlay_shows_the_classes_with_a_legend(folder, image):
    model = UNet.from_pretrained(folder)
    expected = drawing.overlay(image, model.predict(image), model.palette.colors, model.classes)
    assert np.array_equal(model.overlay(Image.fromarray(image)), expected)
    assert model.overlay(image[..., 0]).mode == "RGB"


def test_it_introduces_itself_in_one_line(folder):
    model = UNet.from_pretrained(folder)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert repr(model) == f"UNet(widths [4, 8], {size:,} parameters, 3 classes, cpu)"
    model.facts = {"metric": {"name": "val/miou", "value": 0.5432}}
    assert "mIoU 54.3%" in repr(model)
    assert model.id2label == {0: "sky", 1: "road", 2: "tree"}
    assert np.array_equal(model.colors, model.palette.colors)
    assert model.to("meta").device == torch.device("meta")


def test_windows_and_flips_can_be_asked_for(folder, image):
    model = UNet.from_pretrained(folder)
    inference = unetdist.InferenceConfig(window=(16, 16), flips=True)
    assert isinstance(inference, InferenceConfig)
    expected = predict_image(load_model(folder), image, inference=inference)
    assert np.array_equal(model.predict(image, inference=inference), expected)


def test_what_is_saved_is_loaded_again(folder, image, tmp_path):
    model = UNet.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy", license="apache-2.0", example=image)
    again = UNet.from_pretrained(tmp_path / "copy")
    assert np.array_equal(again.predict(image), model.predict(image))
    assert again.facts == FACTS
    assert (again.resize, again.config) == (model.resize, model.config)
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "(example.png)" in card
    with Image.open(tmp_path / "copy" / "example.png") as example:
        assert example.width >= 30


def test_only_the_model_of_a_repository_is_downloaded(folder, image, monkeypatch):
    asked = []

    def download(repo_id, **options):
        asked.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert UNet.from_pretrained("me/streets", revision="v1").predict(image).shape == (21, 30)
    assert asked == [("me/streets", {"allow_patterns": ["model.safetensors", "config.json"], "revision": "v1"})]


def test_a_repository_that_is_not_there_is_named_with_a_remedy(monkeypatch):
    def download(repo_id, **options):
        raise LocalEntryNotFoundError("cannot find it\nmore words")

    remedy = r"me/streets is neither a folder nor .* \(cannot find it\); give the folder of a trained model"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=remedy):
        UNet.from_pretrained("me/streets")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"runs/x/best does not exist"):
        UNet.from_pretrained("runs/x/best")


def test_a_push_uploads_the_folder(folder, image, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, *, private, exist_ok):
            assert (private, exist_ok) == (True, True)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            uploaded["to"] = repo_id

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = UNet.from_pretrained(folder)
    address = model.push_to_hub("streets", private=True, token="secret", license="mit", example=image)
    assert address == "https://huggingface.co/me/streets"
    assert set(uploaded) == {"model.safetensors", "config.json", "README.md", "example.png", "to"}
    assert uploaded["to"] == "me/streets"
    assert b'UNet.from_pretrained("me/streets")' in uploaded["README.md"]


def test_the_package_has_no_other_face():
    with pytest.raises(AttributeError, match="module 'unetdist' has no attribute 'Unet'"):
        _ = unetdist.Unet


def test_a_push_can_be_pulled_by_others_and_lasts_without_a_network(folder, image, tmp_path):
    """Through huggingface_hub itself, which reads its address once, so in processes of their own."""
    np.save(tmp_path / "image.npy", image)
    load = f"import numpy; from unetdist import UNet; image = numpy.load({str(tmp_path / 'image.npy')!r}); "
    card = "token='hf_x', license='mit', example=image"
    push = f"print(UNet.from_pretrained({str(folder)!r}).push_to_hub('me/streets', {card}))"
    pull = "print(UNet.from_pretrained('me/streets').predict(image).tolist())"
    expected = UNet.from_pretrained(folder).predict(image).tolist()

    def run(code, **more):
        done = subprocess.run(
            [sys.executable, "-c", load + code], env={**environment, **more}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with fake_hub() as (hub, address):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        assert run(push).endswith("me/streets")
        assert set(hub.repositories["me/streets"]) == {"model.safetensors", "config.json", "README.md", "example.png"}
        assert json.loads(run(pull)) == expected
        assert not any(path.endswith((".md", ".png")) for method, path in hub.requests if method == "GET")
        words = ["--model", "me/streets", "--input", "image.png", "--out", "out", "--device", "cpu"]
        Image.fromarray(image).save(tmp_path / "image.png")
        subprocess.run([sys.executable, "-m", "unetdist", "predict", *words], env=environment, cwd=tmp_path, check=True)
        with Image.open(tmp_path / "out/image_ids.png") as ids:
            assert np.array_equal(ids, PALETTE.to_ids(np.array(expected)))
        missing = subprocess.run(
            [sys.executable, "-c", "from unetdist import UNet; UNet.from_pretrained('me/nothing')"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert "me/nothing is neither a folder nor a readable repository of the Hugging Face Hub" in missing.stderr
    assert json.loads(run(pull, HF_HUB_OFFLINE="1")) == expected


REPORT = {**SCORES.to_record(), "miou_interval_95": [0.6, 0.72], "num_samples": 12}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        config = {
            "format": MODEL_FORMAT,
            "unetdist_version": "1",
            "mean": [1.0] * 3,
            "std": [1.0] * 3,
            "model": {"preset": "student"},
            "classes": PALETTE.to_records(),
            "resize": None,
            "run": "streets",
        }
        (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "step": 90, "report": REPORT, **changes}))
        return tmp_path

    return write


def test_the_hub_finds_its_fields(write):
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card_of(write(), license="mit"), re.S)[1])
    assert head == {
        "license": "mit",
        "library_name": "unetdist",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "unet"],
    }
    assert "license" not in card_of(write())


def test_classes_and_scores_are_told(write):
    card = card_of(write())
    assert "# streets\n" in card
    assert "mIoU is 70.1% (95% interval 60.0% to 72.0%) on the 12 images of the validation set" in card
    assert "| 1 | 1 | road | 68.2% |" in card
    assert "| 2 | 2 | tree |  |" in card  # absent
    assert "void" not in card
    assert 'from_pretrained("FOLDER")' in card
    assert "example.png" not in card


def test_a_model_that_was_not_scored_has_a_card_too(write):
    card = card_of(write(report=None))
    assert "mIoU" not in card
    assert "| 0 | 0 | sky |  |" in card


def test_the_repository_is_named(write):
    card = card_of(write(), repo_id="me/better")
    assert 'from_pretrained("me/better")' in card
    assert "# better\n" in card
