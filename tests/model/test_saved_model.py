import json
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.synthetic import PALETTE_RECORDS
from unetdist.data.labels import Palette
from unetdist.errors import CheckpointError, ConfigError
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import (
    CONFIG_FILE,
    MODEL_FILE,
    checksum,
    find_model,
    load_model,
    read_config,
    save_model,
)
from unetdist.model.unet import UNet
from unetdist.storage import files as storage

CONFIG = UNetConfig(widths=(4, 8), norm="group")
PALETTE = Palette.from_records(PALETTE_RECORDS)


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet(CONFIG, 3, mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0]).eval()


def save(folder, model, **facts):
    save_model(folder, model.state_dict(), model=CONFIG, palette=PALETTE, resize=(120, 90), facts=facts)


def test_a_saved_model_predicts_the_same(tmp_path):
    model = unet()
    save(tmp_path / "best", model, metric={"name": "val/miou", "value": 0.5}, step=7)
    saved = load_model(tmp_path / "best")
    image = torch.randint(0, 256, (1, 3, 17, 19), dtype=torch.uint8)
    assert saved.model(image).equal(model(image))
    assert saved.palette == PALETTE
    assert saved.resize == (120, 90)
    assert not saved.model.training
    config = json.loads((tmp_path / "best" / CONFIG_FILE).read_text())
    assert config == saved.config
    assert (config["step"], config["metric"]["value"], config["mean"]) == (7, 0.5, [100.0, 110.0, 120.0])
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [CONFIG_FILE, MODEL_FILE]


def test_a_float64_model_stays_one(tmp_path):
    save(tmp_path, unet().double())
    assert load_model(tmp_path).model(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).dtype == torch.float64


def test_a_crash_between_the_two_files_cannot_part_weights_and_config(tmp_path, monkeypatch):
    save(tmp_path, unet(0), step=1)

    def crash(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(storage, "write_json", crash)
        save(tmp_path, unet(1), step=2)
    saved = load_model(tmp_path)
    assert saved.config["step"] == 2
    assert saved.model.head.weight.equal(unet(1).head.weight)


def test_a_run_and_a_file_in_it_stand_for_its_best_weights(tmp_path):
    save(tmp_path / "x/last", unet(), step=1)
    assert find_model(tmp_path / "x") == tmp_path / "x/last"
    save(tmp_path / "x/best", unet(), step=2)
    for source in ("x", "x/best", "x/best/model.safetensors", "x/best/config.json"):
        assert load_model(tmp_path / source).facts == {"step": 2}
    assert load_model(str(tmp_path / "x/last")).facts == {"step": 1}


def test_a_folder_without_weights_says_what_it_has_instead(tmp_path):
    (tmp_path / "x/checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"x has no trained weights yet, it has checkpoints; .*first validation"):
        load_model(tmp_path / "x")
    save(tmp_path / "camvid/best", unet())
    with pytest.raises(CheckpointError, match=r"holds several runs; give one of them: .*/camvid\."):
        load_model(tmp_path)


def test_a_misspelt_path_gets_a_suggestion_and_no_request_is_sent(tmp_path, monkeypatch):
    save(tmp_path / "runs/camvid/best", unet())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("sent a request"))
    for source in ("runs/canvid", "./runs/canvid", tmp_path / "runs/canvid"):
        with pytest.raises(CheckpointError, match=r"runs/NAME, or OWNER/NAME .*did you mean '.*runs/camvid'"):
            load_model(source)
    with pytest.raises(CheckpointError, match=r"camvid does not exist; .*did you mean 'runs/camvid'"):
        load_model("camvid")
    for source in ("runs/x/best", "../a/b", ".hidden/name", "https://a.org/b"):
        with pytest.raises(CheckpointError, match=r"does not exist; give the folder of a trained model"):
            load_model(source)


def test_a_repository_without_our_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"me/other on the Hugging Face Hub has no model\.safetensors"):
        load_model("me/other")


def test_what_is_no_model_says_so(tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"is damaged .*; use another checkpoint or train again"):
        load_model(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"has format None, this version reads 'unetdist-model-1'; use weights"):
        load_model(tmp_path)


def test_weights_of_another_architecture_say_so(tmp_path):
    other = UNet(UNetConfig(widths=(4, 8, 8)), 3, mean=[1.0] * 3, std=[1.0] * 3)
    save(tmp_path, other)
    with pytest.raises(CheckpointError, match=r"does not fit .*Unexpected key.*encoder\.1\."):
        load_model(tmp_path)


def test_a_model_of_timm_comes_back_too(tmp_path):
    pytest.importorskip("timm")
    config = UNetConfig(encoder="resnet10t", norm="group", decoder_convs=1)
    torch.manual_seed(0)
    model = UNet(config, 3, mean=[100.0] * 3, std=[50.0] * 3).eval()
    save_model(tmp_path, model.state_dict(), model=config, palette=PALETTE, resize=None, facts={})
    image = torch.randint(0, 256, (1, 3, 65, 70), dtype=torch.uint8)
    assert load_model(tmp_path).model(image).equal(model(image))


def test_layout_and_gradients_are_those_of_training(tmp_path):
    model = unet()
    save(tmp_path, model)
    loaded = load_model(tmp_path).model
    for (name, parameter), (_, other) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert (parameter.stride(), parameter.requires_grad) == (other.stride(), other.requires_grad), name


def rewrite(folder, change_config=lambda config: None, change_tensors=lambda tensors: None, *, sign=True):
    """The model with another configuration or other tensors, and a checksum of them, as a forger would write it."""
    path = folder / MODEL_FILE
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["unetdist"])
    tensors = load_file(path)
    change_config(config)
    change_tensors(tensors)
    text = json.dumps(config)
    metadata = {"format": "pt", "unetdist": text}
    if sign:
        metadata["unetdist_sha256"] = checksum(text, tensors)
    save_file(tensors, path, metadata)


def test_a_model_of_an_older_version_loads_with_a_line(tmp_path, caplog):
    save(tmp_path, unet())
    rewrite(tmp_path, sign=False)
    with caplog.at_level("INFO"):
        assert load_model(tmp_path).model.head.weight.equal(unet().head.weight)
    assert [record.getMessage().count("no checksum") for record in caplog.records] == [1]


def test_random_damage_never_changes_a_prediction(tmp_path):
    save(tmp_path, unet(), step=7)
    path = tmp_path / MODEL_FILE
    good, config = path.read_bytes(), load_model(tmp_path).config
    state = load_model(tmp_path).model.state_dict()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        path.write_bytes(damaged(good, rng, number % 4))
        try:
            saved = load_model(tmp_path)
        except (CheckpointError, ConfigError):
            refused += 1
            continue
        # Let in only where it changes nothing, such as a blank of the header.
        assert saved.config == config
        assert all(value.equal(state[name]) for name, value in saved.model.state_dict().items())
    assert refused >= 195


def damaged(data: bytes, rng: np.random.Generator, kind: int) -> bytes:
    """One bit flipped, the end lost, two blocks exchanged, or a block overwritten."""
    changed = bytearray(data)
    first, second = sorted(int(place) for place in rng.integers(0, len(data) - 64, 2))
    if kind == 0:
        changed[first] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del changed[first:]
    elif kind == 2:
        changed[first : first + 64], changed[second : second + 64] = (
            data[second : second + 64],
            data[first : first + 64],
        )
    else:
        changed[first : first + 64] = rng.bytes(64)
    return bytes(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = unet()
    with torch.no_grad():
        model.head.weight[0, 0] = value
    save(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"head\.weight holds values that are not finite"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"widths": [10**9, 10**9]}}, r"model\.widths .*1000000000"),
        ({"model": {"widths": [4] * 5000}}, r"model\.widths has 5000 levels"),
        ({"model": {"widths": [60000, 60000, 60000]}}, "does not fit its own configuration"),
        ({"model": {"widths": [4, 8], "norm": "none"}}, "does not fit its own configuration"),
        ({"model": {"widths": "4"}}, "widths"),
        ({"model": [4, 8]}, r"model \(a list of 2\) must be an object"),
        ({"classes": [{"index": 0, "id": 256, "name": "a", "color": [0, 0, 0]}]}, r"id \(256\)"),
        ({"classes": [{"index": 0, "id": -1, "name": "a", "color": [0, 0, 0]}]}, "ids of classes"),
        ({"classes": [{"index": 0, "id": 0, "name": "a", "color": [0, 0, 300]}]}, r"color\[2\] \(300\)"),
        ({"classes": [{"index": 0, "id": 0, "name": "a", "color": [0, 0, 0]}]}, r"size mismatch for head\."),
        ({"mean": [1.0, 2.0]}, "mean"),
        ({"mean": ["1", "2", "3"]}, r"mean\[0\] \('1'\) must be a finite number"),
        ({"std": [-1.0, 2.0, 3.0]}, "std"),
        ({"resize": [7.5, 3]}, "resize"),
        ({"resize": [0, 3]}, "resize"),
        ({"resize": [2**63, 3]}, "resize"),
    ],
)
def test_a_forged_configuration_is_refused_before_memory_is_taken(tmp_path, changes, message):
    save(tmp_path, unet())
    rewrite(tmp_path, lambda config: config.update(changes))
    began = time.monotonic()
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_model(tmp_path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_weights_of_another_type_are_refused(tmp_path, dtype):
    save(tmp_path, unet())
    rewrite(tmp_path, change_tensors=lambda tensors: tensors.update(mean=tensors["mean"].to(dtype)))
    with pytest.raises(CheckpointError, match=f"mean is {dtype}"):
        load_model(tmp_path)


def test_the_readable_twin_is_not_what_is_read(tmp_path):
    save(tmp_path, unet(), step=1)
    (tmp_path / CONFIG_FILE).write_text("junk")
    assert read_config(tmp_path)["step"] == load_model(tmp_path).config["step"] == 1
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_config(tmp_path)
