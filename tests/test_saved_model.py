import json

import pytest
import torch
from safetensors.torch import save_file

from tests.synthetic import PALETTE_RECORDS
from unetdist import storage
from unetdist.data.labels import Palette
from unetdist.errors import CheckpointError
from unetdist.model.unet import UNet, UNetConfig
from unetdist.saved_model import CONFIG_FILE, MODEL_FILE, load_model, save_model

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


def test_wrapped_weights_are_refused(tmp_path):
    wrapped = torch.nn.ModuleDict({"module": unet()})
    with pytest.raises(
        CheckpointError, match=r"belongs to a wrapped model; save the state_dict of the module inside"
    ):
        save_model(tmp_path, wrapped.state_dict(), model=CONFIG, palette=PALETTE, resize=None, facts={})


def test_what_is_no_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.safetensors does not exist; give --model the folder"):
        load_model(tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"is damaged .*; use another checkpoint or train again"):
        load_model(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / MODEL_FILE)
    with pytest.raises(
        CheckpointError, match=r"has format None, this version reads 'unetdist-model-1'; use weights"
    ):
        load_model(tmp_path)


def test_weights_of_another_architecture_say_so(tmp_path):
    other = UNet(UNetConfig(widths=(4, 8, 8)), 3, mean=[1.0] * 3, std=[1.0] * 3)
    save(tmp_path, other)
    with pytest.raises(
        CheckpointError, match="does not fit its own configuration: .*Unexpected key.*; save the model again"
    ):
        load_model(tmp_path)
