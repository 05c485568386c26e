import dataclasses

import numpy as np
import pytest
import torch

from tests.distributed.launcher import run_ranks
from tests.faulty_server import serve
from tests.synthetic import PALETTE_RECORDS, draw, settings_of, write_shards
from unetdist.cli import settings
from unetdist.data.config import DataConfig
from unetdist.data.labels import Palette
from unetdist.data.manifest import Manifest
from unetdist.distributed.collectives import World
from unetdist.errors import ConfigError
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.evaluate import LeftEarlyError
from unetdist.evaluation.validator import Validator, evaluations, shares_windows
from unetdist.model.config import InferenceConfig, UNetConfig
from unetdist.model.inference import predict_logits
from unetdist.train.build import build_trainer
from unetdist.train.config import Config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with val/ of three images, mixed/ of three images of two sizes, and a run on train/ and val/."""
    folder = tmp_path_factory.mktemp("trained")
    write_shards(folder / "train", 4)
    write_shards(folder / "val", 3)
    write_shards(folder / "mixed", 3, sizes=((40, 56), (40, 56), (70, 33)))
    values = settings_of(folder / "train", folder / "val", folder / "runs")
    with build_trainer(settings.from_mapping(Config, values)) as trainer:
        trainer.fit()
    return folder


@pytest.fixture
def opened(trained):
    """The validator of val/, with three pictures, and the best model of the run."""
    with evaluations(
        [str(trained / "runs/tiny/best")], str(trained / "val"), cfg=ValidationConfig(), num_workers=0
    ) as (((validator, saved),), _):
        validator.num_pictures = 3
        yield validator, saved


def test_a_saved_model_scores_as_it_did_while_training(opened):
    validator, saved = opened
    report = validator.score(saved.model).to_mapping()
    assert report["confusion"] == saved.config["report"]["confusion"]
    assert report["miou"] == saved.config["metric"]["value"]


def test_examples_carry_key_image_mask_and_prediction(opened):
    validator, saved = opened
    examples = validator.score(saved.model).examples
    assert examples[0].key == "pictures/000"
    assert [each.is_worst for each in examples] == [False, True, True]
    for each in examples:
        assert each.key == f"pictures/{each.id:03d}"
        image, mask = draw(each.id, (24, 32))
        assert (each.image == image).all()
        assert (each.mask == mask).all()
        pred = saved.model(torch.from_numpy(image).permute(2, 0, 1)[None]).argmax(1)[0].numpy()
        assert (each.pred == pred).all()


def test_a_model_trained_on_resized_images_scores_at_the_size_of_the_shards(opened):
    validator, saved = opened
    plain = validator.score(saved.model)
    validator.resize = (16, 12)  # width, height
    resized = validator.score(saved.model)
    assert plain.confusion.sum() == resized.confusion.sum()
    assert not np.array_equal(plain.confusion, resized.confusion)


def test_images_are_scored_without_autotuning_which_training_may_have(opened, monkeypatch):
    validator, saved = opened
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as on a GPU
    saved.model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    validator.rehearse(saved.model)
    validator.score(saved.model)
    assert seen == [False] * 4
    assert torch.backends.cudnn.benchmark


def test_settings_say_how_images_are_predicted(opened):
    validator, saved = opened
    inference = InferenceConfig(window=(16, 16), window_batch=2, flips=True, scales=(1.0, 1.5))
    validator.cfg = ValidationConfig(inference=inference)
    seen = []
    saved.model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    examples = validator.score(saved.model).examples
    assert set(seen) == {(2, 3, 16, 16), (2, 3, 24, 24)}
    for example in examples:
        image = torch.from_numpy(example.image).permute(2, 0, 1)[None]
        logits = predict_logits(saved.model, image, inference=inference)
        assert (example.pred == logits[0].argmax(0).numpy()).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"palette_records": ({**PALETTE_RECORDS[0], "name": "heaven"}, *PALETTE_RECORDS[1:])},
            "has other classes than the training shards; shard both with the same Labels",
        ),
        ({"class_pixels": (0, 0, 0)}, "has only ignored pixels, so it has no mIoU; use other shards"),
    ],
)
def test_shards_that_cannot_be_scored_are_refused(trained, tmp_path, changes, message):
    dataclasses.replace(Manifest.load(trained / "val"), **changes).save(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_validator(str(tmp_path), tmp_path)


def open_validator(location, cache_dir):
    return Validator(
        location,
        model_config=UNetConfig(),
        palette=Palette.from_records(PALETTE_RECORDS),
        resize=None,
        image_range=None,
        loss=None,
        cfg=ValidationConfig(),
        data_cfg=DataConfig(train=location, num_workers=0, cache_dir=str(cache_dir)),
        num_pictures=0,
        world=World(),
        autocast=None,
    )


def test_keys_come_from_a_server_that_sends_whole_files_only(trained, tmp_path):
    with serve(trained / "val") as server:
        server.has_ranges = False
        assert open_validator(server.url, tmp_path).key_of(2) == "pictures/002"


@pytest.mark.parametrize(
    ("window", "num_samples", "world_size", "expected"),
    [(None, 1, 8, False), ((8, 8), 3, 2, True), ((8, 8), 4, 2, False), ((8, 8), 2, 1, False)],
)
def test_few_images_with_windows_are_predicted_together(window, num_samples, world_size, expected):
    world = World(world_size=world_size)
    assert shares_windows(InferenceConfig(window=window), num_samples, world) == expected


def scored(trained):
    """What each rank reports of the images and shows of them, and whether it left when rank 1 asked for it."""
    inference = InferenceConfig(window=(16, 24), window_batch=3, flips=True)
    cfg = ValidationConfig(batch_size=2, inference=inference, calibration=True)
    model, data = str(trained / "runs/tiny/last"), str(trained / "mixed")
    with evaluations([model], data, cfg=cfg, num_workers=0) as (((validator, saved),), world):
        validator.num_pictures = 3
        validator.rehearse(saved.model)
        report = validator.score(saved.model, per_image=True)
        left = world.world_size == 1
        try:
            validator.score(saved.model, is_over=lambda: world.rank == 1)
        except LeftEarlyError:
            left = True
    shown = [(each.id, each.miou, each.is_worst, each.image, each.mask, each.pred) for each in report.examples]
    return report.to_mapping(), report.per_image, shown, left


def test_windows_of_an_image_are_shared_with_the_same_score_on_any_number_of_processes(trained):
    ((alone, images, shown, _),) = run_ranks(scored, 1, trained)
    for world_size in (2, 3):
        for numbers, per_image, shown_too, left in run_ranks(scored, world_size, trained):
            assert left, "a rank that was not asked to stop must not wait for one that was"
            assert [each[:3] for each in shown_too] == [each[:3] for each in shown]
            for each, other in zip(shown_too, shown, strict=True):
                assert all(np.array_equal(*planes) for planes in zip(each[3:], other[3:], strict=True))
            assert numbers["loss"] == pytest.approx(alone["loss"], rel=1e-12)
            assert {**numbers, "loss": 0} == {**alone, "loss": 0}
            assert np.array_equal(per_image, images)
