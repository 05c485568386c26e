import numpy as np
import torch

from tests.synthetic import PALETTE_RECORDS, draw, settings_of, write_shards
from unetdist import settings
from unetdist.build import build_trainer
from unetdist.config import Config
from unetdist.data.labels import Palette


def test_pictures_carry_key_image_mask_and_prediction(tmp_path):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 3)
    values = settings_of(
        tmp_path / "train",
        tmp_path / "val",
        tmp_path / "runs",
        tracking={"tracker": "none", "num_pictures": 2},
    )
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        validator, model = trainer.validator, trainer.model.eval()
        report = validator.score(model)
        pictures = validator.pictures(report)
    assert [picture.key for picture in pictures] == ["pictures/000", "pictures/001"]
    for index, picture in enumerate(pictures):
        image, mask = draw(index, (24, 32))
        assert (picture.image == image).all()
        assert (picture.mask == mask).all()
        pred = model(torch.from_numpy(image).permute(2, 0, 1)[None]).argmax(1)[0].numpy()
        assert (picture.pred == pred).all()
    assert validator.palette == Palette.from_records(PALETTE_RECORDS)


def test_a_model_trained_on_resized_images_scores_at_the_size_of_the_shards(tmp_path):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 3)
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        validator = trainer.validator
        plain = validator.score(trainer.model.eval())
        validator.resize = (16, 12)  # width, height
        resized = validator.score(trainer.model.eval())
    assert plain.confusion.sum() == resized.confusion.sum()
    assert not np.array_equal(plain.confusion, resized.confusion)


def test_images_are_scored_without_autotuning_which_training_may_have(tmp_path, monkeypatch):
    seen = []
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 3)
    values = settings_of(tmp_path / "train", tmp_path / "val", tmp_path / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as on a GPU
        model = trainer.model.eval()
        model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
        trainer.validator.rehearse(model)
        trainer.validator.score(model)
    assert seen == [False] * 4
    assert torch.backends.cudnn.benchmark
