import json
import re

import pytest
import yaml

from tests.tracking.samples import PALETTE, SCORES
from unetdist.model.saved_model import CONFIG_FILE, MODEL_FORMAT
from unetdist.predict.model_card import card_of

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
    card = card_of(write(resize=[120, 90]))
    assert "# streets\n" in card
    assert "mIoU **70.1 %** (95 % bootstrap interval over images 60.0 to 72.0 %)" in card
    assert "on the 12 images of the validation set, after 90 steps" in card
    assert "| 1 | 1 | road | 80, 10, 20 | 68.2 |" in card
    assert "| 2 | 2 | tree | 160, 10, 20 |  |" in card  # absent
    assert "void" not in card
    assert "120x90 pixels" in card
    assert '"preset": "student"' in card


def test_a_model_that_was_not_scored_has_a_card_too(write):
    card = card_of(write(report=None))
    assert "mIoU" not in card
    assert "| 0 | 0 | sky | 0, 10, 20 |  |" in card


def test_the_example_and_the_repository_are_named(write):
    folder = write()
    assert "example.png" not in card_of(folder)
    assert 'from_pretrained("FOLDER")' in card_of(folder)
    (folder / "example.png").touch()
    card = card_of(folder, repo_id="me/better")
    assert "(example.png)" in card
    assert 'from_pretrained("me/better")' in card
    assert "# better\n" in card
