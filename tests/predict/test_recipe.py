from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.predict.test_volume import saved, write_folder  # noqa: F401 (a fixture)
from unetdist.errors import ConfigError
from unetdist.model.inference import InferenceConfig
from unetdist.predict import predict_files


def test_results_of_another_model_or_other_settings_are_not_mixed(tmp_path, saved):  # noqa: F811
    source, out = tmp_path / "in", tmp_path / "out"
    write_folder(source, 1)
    predict_files(saved, source, out)
    windows = InferenceConfig(window=(8, 8), window_batch=1)
    with pytest.raises(ConfigError, match=r"--out \(.*out\) holds results of other inference; .*--overwrite"):
        predict_files(saved, source, out, inference=windows)
    saved.model.register_buffer("step", torch.tensor(1))
    with pytest.raises(ConfigError, match="holds results of other weights; give another folder, or --overwrite"):
        predict_files(saved, source, out)
    assert predict_files(saved, source, out, overwrite=True) == []
    assert predict_files(saved, source, out) == []


def test_a_range_can_be_said_after_an_attempt_without_one(tmp_path, saved):  # noqa: F811
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
        with pytest.raises(ConfigError, match="holds results of other image_range; give another folder"):
            predict_files(other, source, out)


def test_a_folder_that_cannot_be_written_to(tmp_path, saved):  # noqa: F811
    write_folder(tmp_path / "in", 1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"--out \(.*out\) cannot be written to .*; give another folder"):
        predict_files(saved, tmp_path / "in", tmp_path / "out")
