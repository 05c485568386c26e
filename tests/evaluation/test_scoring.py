import dataclasses

import pytest

from tests.synthetic import PALETTE_RECORDS, settings_of, write_shards
from unetdist.cli import settings
from unetdist.errors import ConfigError
from unetdist.evaluation.validator import evaluation
from unetdist.train.build import build_trainer
from unetdist.train.config import Config


def build(tmp_path):
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    return build_trainer(settings.from_mapping(Config, values))


def test_validation_shards_with_other_classes_are_refused(tmp_path):
    write_shards(tmp_path / "train", 4)
    manifest = write_shards(tmp_path / "val", 2)
    renamed = ({**PALETTE_RECORDS[0], "name": "heaven"}, *PALETTE_RECORDS[1:])
    dataclasses.replace(manifest, palette_records=renamed).save(tmp_path / "val")
    with pytest.raises(
        ConfigError, match="has other classes than the training shards; shard both with the same Labels"
    ):
        build(tmp_path)


def test_validation_shards_without_a_valid_pixel_are_refused(tmp_path):
    write_shards(tmp_path / "train", 4)
    manifest = write_shards(tmp_path / "val", 2)
    dataclasses.replace(manifest, class_pixels=(0, 0, 0)).save(tmp_path / "val")
    with pytest.raises(ConfigError, match="has only ignored pixels, so it has no mIoU; use other shards"):
        build(tmp_path)


def test_a_saved_model_scores_as_it_did_while_training(tmp_path):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 3)
    with build(tmp_path) as trainer:
        trainer.fit()
    best = str(tmp_path / "runs" / "tiny" / "best")
    with evaluation(best, str(tmp_path / "val"), num_workers=0) as (validator, saved, world):
        report = validator.score(saved.model).to_mapping()
    assert world.is_main
    assert report["confusion"] == saved.config["report"]["confusion"]
    assert report["miou"] == saved.config["metric"]["value"]
