import numpy as np
import pytest
import torch

from tests.distributed.launcher import run_ranks
from tests.synthetic import PALETTE_RECORDS, draw, settings_of, write_shards
from unetdist.cli import settings
from unetdist.data.labels import Palette
from unetdist.distributed.collectives import World
from unetdist.evaluation.evaluate import LeftEarlyError, ValidationConfig
from unetdist.evaluation.validator import evaluations
from unetdist.evaluation.validator import shares_windows
from unetdist.model.inference import InferenceConfig, predict_logits
from unetdist.train.build import build_trainer
from unetdist.train.config import Config


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
    assert pictures[0].key == "pictures/000"  # the first; the other one is the worst
    assert [picture.is_worst for picture in pictures] == [False, True]
    for picture, example in zip(pictures, report.examples, strict=True):
        index = int(picture.key[-3:])
        assert (picture.miou, index) == (example.miou, example.id)
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


def test_settings_say_how_images_are_predicted(tmp_path):
    write_shards(tmp_path / "train", 4)
    write_shards(tmp_path / "val", 3)
    inference = {"window": [16, 16], "window_batch": 2, "flips": True, "scales": [1.0, 1.5]}
    values = settings_of(
        tmp_path / "train",
        tmp_path / "val",
        tmp_path / "runs",
        validation={"inference": inference},
        tracking={"tracker": "none", "num_pictures": 3},
    )
    seen = []
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        validator, model = trainer.validator, trainer.model.eval()
        model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        examples = validator.score(model).examples
        assert set(seen) == {(2, 3, 16, 16), (2, 3, 24, 24)}
        for example in examples:
            image = torch.from_numpy(example.image).permute(2, 0, 1)[None]
            logits = predict_logits(model, image, inference=InferenceConfig(**inference))
            assert (example.pred == logits[0].argmax(0).numpy()).all()


@pytest.mark.parametrize(
    ("window", "num_samples", "world_size", "expected"),
    [(None, 1, 8, False), ((8, 8), 3, 2, True), ((8, 8), 4, 2, False), ((8, 8), 2, 1, False)],
)
def test_few_images_with_windows_are_predicted_together(window, num_samples, world_size, expected):
    world = World(world_size=world_size)
    assert shares_windows(InferenceConfig(window=window), num_samples, world) == expected


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model in runs/tiny/best, and with val/ of three images of two sizes."""
    folder = tmp_path_factory.mktemp("trained")
    write_shards(folder / "train", 4)
    write_shards(folder / "val", 3, sizes=((40, 56), (40, 56), (70, 33)))
    values = settings_of(folder / "train", None, folder / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    return folder


def scored(trained, leaves):
    """What each rank reports of the images, and shows of them; None if all left early."""
    inference = InferenceConfig(window=(16, 24), window_batch=3, flips=True)
    cfg = ValidationConfig(batch_size=2, inference=inference, calibration=True)
    where = (str(trained / "val"),)
    with evaluations([str(trained / "runs/tiny/last")], *where, cfg=cfg, num_workers=0) as (models, world):
        ((validator, saved),) = models
        validator.num_pictures = 3
        validator.rehearse(saved.model)
        try:
            report = validator.score(saved.model, per_image=True, is_over=lambda: leaves and world.rank == 1)
        except LeftEarlyError:
            return None
    shown = [
        (each.id, each.miou, each.is_worst, each.image, each.mask, each.pred) for each in report.examples
    ]
    return report.to_mapping(), report.per_image, shown


def test_windows_of_an_image_are_shared_with_the_same_score_on_any_number_of_processes(trained):
    ((alone, images, shown),) = run_ranks(scored, 1, trained, False)
    for world_size in (2, 3):
        for numbers, per_image, shown_too in run_ranks(scored, world_size, trained, False):
            assert [each[:3] for each in shown_too] == [each[:3] for each in shown]
            for each, other in zip(shown_too, shown, strict=True):
                assert all(np.array_equal(*planes) for planes in zip(each[3:], other[3:], strict=True))
            assert numbers["loss"] == pytest.approx(alone["loss"], rel=1e-12)
            assert {**numbers, "loss": 0} == {**alone, "loss": 0}
            assert np.array_equal(per_image, images)


def test_ranks_that_share_windows_leave_together(trained):
    assert run_ranks(scored, 2, trained, True) == [None, None]
