"""`unetdist evaluate` as a user types it."""

import json

import numpy as np
import pytest

from tests.synthetic import settings_of, write_shards
from unetdist.cli import settings
from unetdist.commands import evaluate as script
from unetdist.errors import ConfigError
from unetdist.train.build import build_trainer
from unetdist.train.config import Config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with val/ and, of one run, best/ and last/."""
    folder = tmp_path_factory.mktemp("trained")
    write_shards(folder / "train", 4)
    write_shards(folder / "val", 3)
    values = settings_of(folder / "train", folder / "val", folder / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    (folder / "taken").write_text("a file where the folder should be")
    return folder


def evaluate(trained, *words, model=True):
    models = ["--model", trained / "runs/tiny/best"] if model else []
    words = [*models, "--data", trained / "val", "--num-workers", 0, *words]
    script.main([*map(str, words)])


@pytest.mark.parametrize(("option", "name"), [("--json", "x.json"), ("--per-image", "x.npz")])
def test_a_file_that_cannot_be_written_is_named_after_the_score(trained, option, name):
    with pytest.raises(ConfigError, match=rf"{option} \(.+{name}\) cannot be written \(.+\); give another"):
        evaluate(trained, option, trained / "taken" / name)


def test_the_numbers_are_kept_if_those_of_the_images_cannot_be_written(trained, tmp_path):
    with pytest.raises(ConfigError, match="--per-image"):
        evaluate(trained, "--json", tmp_path / "x.json", "--per-image", trained / "taken/x.npz")
    assert "miou" in json.loads((tmp_path / "x.json").read_text())


def test_every_number_that_was_asked_for_is_written(trained, tmp_path):
    files = [tmp_path / name for name in ("all.json", "images.npz")]
    words = ("--boundary", "--calibration", "--json", files[0], "--per-image", files[1])
    evaluate(trained, *words)
    numbers = json.loads(files[0].read_text())
    assert numbers["boundary"]["boundary_miou"] <= 1
    assert len(numbers["calibration"]["pixels"]) == 15
    with np.load(files[1]) as images:
        assert images["confusion"].sum(0).tolist() == numbers["confusion"]
        assert len(set(images["keys"].tolist())) == 3


def test_two_models_are_compared_on_the_same_images(trained, tmp_path, capsys):
    best = trained / "runs/tiny/best"
    words = ("--compare", best, trained / "runs/tiny/last", "--json", tmp_path / "all.json")
    evaluate(trained, *words, model=False)
    numbers = json.loads((tmp_path / "all.json").read_text())
    assert numbers["comparison"]["a"]["miou"] == numbers["models"][0]["miou"]
    assert numbers["comparison"]["a"]["miou_interval_95"] == numbers["models"][0]["miou_interval_95"]
    assert numbers["models"][0]["model"] == str(best)
    assert 0 < numbers["comparison"]["p_value"] <= 1


def test_files_of_one_model_are_refused_with_two(trained):
    with pytest.raises(ConfigError, match="give --model instead of --compare"):
        evaluate(trained, "--compare", "a", "b", "--per-image", "x.npz", model=False)


def test_windows_and_several_views_are_options(trained, tmp_path):
    scores = {}
    for name, words in {"plain": "", "wide": "--window 999 999", "tta": "--window 16 16 --tta"}.items():
        evaluate(trained, "--json", tmp_path / name, *words.split())
        scores[name] = json.loads((tmp_path / name).read_text())
    assert scores["plain"]["confusion"] == scores["wide"]["confusion"]
    assert scores["plain"]["confusion"] != scores["tta"]["confusion"]
    assert scores["plain"]["num_samples"] == scores["tta"]["num_samples"]
