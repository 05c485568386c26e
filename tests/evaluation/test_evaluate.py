import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.distributed.launcher import run_ranks
from unetdist.data.batch import Batch
from unetdist.errors import ConfigError, DataError
from unetdist.evaluation import evaluate as module
from unetdist.evaluation.boundary import BoundaryScores, boundary_counts
from unetdist.evaluation.config import ValidationConfig
from unetdist.evaluation.evaluate import ExpectedCounts, LeftEarlyError, evaluate, predict_fixed
from unetdist.evaluation.metrics import PoissonBootstrap, Reliability, Scores, confusion_matrix, reliability_counts
from unetdist.model.config import LossConfig
from unetdist.model.losses import build_loss

CLASSES = ("sky", "road", "tree")
IMAGES = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MASKS = (IMAGES[:, 0] // 90).where(IMAGES[:, 1] > 60, torch.tensor(255, dtype=torch.uint8))


def predict(image):
    """Logits whose largest is class `third channel // 100`."""
    return torch.nn.functional.one_hot((image[:, 2] // 100).long(), 3).permute(0, 3, 1, 2).float()


def batch(*ids):
    mask = MASKS[list(ids)]
    counts = torch.stack([(mask == c).sum((1, 2)) for c in range(3)], 1)
    return Batch(image=IMAGES[list(ids)], mask=mask, ids=torch.tensor(ids), class_pixels=counts)


def expected(num_samples=7, **changes):
    pixels = np.array([int((MASKS[:num_samples] == c).sum()) for c in range(3)])
    for name, value in changes.items():
        pixels[CLASSES.index(name)] += value
    return ExpectedCounts("shards/val", num_samples, CLASSES, pixels)


def run(batches, expect=None, batch_size=1, is_over=lambda: False, extras=False, **loss):
    return evaluate(
        predict,
        batches,
        expected=expect or expected(),
        loss=build_loss(LossConfig(**loss), num_classes=3),
        cfg=ValidationConfig(batch_size=batch_size, bootstrap_replicates=50, boundary=extras, calibration=extras),
        device=torch.device("cpu"),
        num_examples=2,
        per_image=extras,
        is_over=is_over,
    )


def test_the_score_is_that_of_plain_numpy():
    report = run([batch(0, 1, 2), batch(3, 4), batch(5, 6)], batch_size=3)
    pred, mask = (IMAGES[:, 2] // 100).numpy(), MASKS.numpy()
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (mask[mask != 255], pred[mask != 255]), 1)
    assert (report.confusion == confusion).all()
    assert report.scores.miou == Scores.from_confusion(confusion, CLASSES).miou
    assert report.num_samples == 7
    assert report.interval[0] < report.scores.miou < report.interval[1]
    losses = torch.nn.functional.cross_entropy(predict(IMAGES), MASKS.long(), ignore_index=255)
    assert report.loss == pytest.approx(float(losses), rel=1e-6)


def test_batches_and_order_do_not_matter():
    one = run([batch(0, 1, 2, 3, 4, 5, 6)], batch_size=7, dice_weight=0.5).to_mapping()
    other = run([batch(i) for i in (6, 2, 3, 1, 0, 5, 4)], dice_weight=0.5).to_mapping()
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
    assert {**one, "loss": 0} == {**other, "loss": 0}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            range(6),
            "shards/val: 6 samples were scored, the manifest lists 7; the score would be wrong, so it is refused",
        ),
        ((0, 1, 2, 3, 4, 5, 5), "7 samples were scored, but some of them twice and others never"),
    ],
)
def test_an_incomplete_score_is_refused(ids, message):
    with pytest.raises(DataError, match=message):
        run([batch(i) for i in ids])


def test_other_pixels_than_the_manifest_lists_are_refused():
    with pytest.raises(DataError, match="pixels of class road were scored, the manifest lists .*; the score would be"):
        run([batch(*range(7))], expected(road=1), batch_size=7)


def test_the_first_and_the_worst_are_kept_for_the_eye():
    report = run([batch(4, 5, 6), batch(0, 1, 2, 3)], extras=True)
    mious = [Scores.from_confusion(confusion, CLASSES).miou for confusion in report.per_image]
    first, worst = report.examples
    assert (first.id, first.is_worst) == (0, False)
    assert (worst.id, worst.is_worst) == (int(np.argmin(mious)), True)
    for example in report.examples:
        assert example.miou == mious[example.id]
        assert (example.image == IMAGES[example.id].permute(1, 2, 0).numpy()).all()
        assert (example.pred == (IMAGES[example.id, 2] // 100).numpy()).all()
        assert (example.mask == MASKS[example.id].numpy()).all()


def test_a_partial_batch_is_filled_up_so_that_every_image_meets_the_same_kernels():
    shapes = []

    def remember(image):
        shapes.append(tuple(image.shape))
        return predict(image)

    assert predict_fixed(remember, IMAGES[:2], 4).equal(predict(IMAGES[:2]))
    assert predict_fixed(remember, IMAGES[:4], 4).equal(predict(IMAGES[:4]))
    assert shapes == [(4, 3, 5, 6)] * 2


def test_the_report_is_json_with_none_for_what_is_not_defined():
    only_sky = Batch(IMAGES[:1], torch.zeros(1, 5, 6, dtype=torch.uint8), torch.tensor([0]), torch.tensor([[30, 0, 0]]))
    report = evaluate(
        lambda image: torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(len(image), 3, 5, 6),
        [only_sky],
        expected=ExpectedCounts("x", 1, CLASSES, np.array([30, 0, 0])),
        loss=build_loss(LossConfig(), num_classes=3),
        cfg=ValidationConfig(bootstrap_replicates=1),
        device=torch.device("cpu"),
    ).to_mapping()
    classes = json.loads(json.dumps(report, allow_nan=False))["classes"]
    assert [classes[name]["iou"] for name in CLASSES] == [1.0, None, None]
    assert report["absent"] == ["road", "tree"]
    assert report["miou"] == 1.0


def test_a_loss_that_is_not_finite_does_not_keep_the_score_from_being_written():
    report = dataclasses.replace(run([batch(*range(7))], batch_size=7), loss=float("inf"))
    assert json.loads(json.dumps(report.to_mapping(), allow_nan=False))["loss"] is None


@pytest.mark.parametrize("name", ["batch_size", "bootstrap_replicates"])
def test_settings_that_cannot_work_are_refused(name):
    with pytest.raises(ConfigError, match=rf"validation.{name} \(0\) must be at least 1"):
        ValidationConfig(**{name: 0})


def test_the_device_is_read_only_now_and_then_and_every_image_counts(monkeypatch):
    reads = []
    read = module._Tally._read
    monkeypatch.setattr(module, "READ_EVERY", 3)
    monkeypatch.setattr(module._Tally, "_read", lambda tally: (reads.append(len(tally._unread)), read(tally)))
    report = run([batch(i) for i in range(7)], extras=True)
    assert reads == [3, 3, 1]
    masks, preds, logits = MASKS, IMAGES[:, 2] // 100, predict(IMAGES)
    each = [confusion_matrix(pred, mask, 3) for pred, mask in zip(preds, masks, strict=True)]
    assert report.per_image.tolist() == [confusion.tolist() for confusion in each]
    bootstrap = PoissonBootstrap(3, 50)
    for sample_id, confusion in enumerate(each):
        bootstrap.add(sample_id, confusion.numpy())
    assert report.interval == bootstrap.interval()
    outlines = sum(boundary_counts(pred, mask, 3) for pred, mask in zip(preds, masks, strict=True))
    assert report.boundary.to_record() == BoundaryScores.from_counts(outlines.numpy(), CLASSES).to_record()
    confidence = sum(reliability_counts(one, mask) for one, mask in zip(logits, masks, strict=True))
    assert report.reliability.to_record() == Reliability.from_counts(confidence.numpy()).to_record()


@pytest.mark.parametrize("extras", [{"boundary": True}, {"calibration": True}], ids=str)
def test_outlines_and_confidence_can_be_scored_apart(extras):
    cfg = ValidationConfig(batch_size=7, bootstrap_replicates=1, **extras)
    loss = build_loss(LossConfig(), num_classes=3)
    device = torch.device("cpu")
    one = evaluate(predict, [batch(*range(7))], expected=expected(), loss=loss, cfg=cfg, device=device).to_mapping()
    both = run([batch(*range(7))], batch_size=7, extras=True).to_mapping()
    assert {name for name in ("boundary", "calibration") if name in one} == set(extras)
    assert all(one[name] == both[name] for name in extras)


def left_on_one_rank():
    rank = torch.distributed.get_rank()
    asked = iter([False, rank == 1])
    batches = [batch(0, 1), batch(2, 3)] if rank == 0 else [batch(4), batch(5), batch(6)]
    try:
        run(batches, is_over=lambda: next(asked))
    except LeftEarlyError:
        return True
    return False


def everything(parts):
    rank = torch.distributed.get_rank()
    assert len(parts) == 1 or left_on_one_rank()
    report = run([batch(*ids) for ids in parts[rank]], batch_size=2, extras=True)
    return report.to_mapping(), report.per_image


def test_all_counts_are_the_same_on_any_number_of_ranks_which_leave_when_one_is_asked_to():
    """A rank that is not asked goes on to the end of its part, and then leaves too."""
    ((whole, per_image),) = run_ranks(everything, 1, [[(0, 1), (2, 3), (4, 5), (6,)]])
    for mapping, images in run_ranks(everything, 2, [[(6, 2)], [(0,), (5, 4), (3, 1)]]):
        assert mapping == {**whole, "loss": pytest.approx(whole["loss"], rel=1e-12)}
        assert np.array_equal(images, per_image)
    assert per_image.shape == (7, 3, 3)
    assert per_image.sum(0).tolist() == whole["confusion"]
    assert whole["confusion"] == run([batch(i) for i in range(7)]).confusion.tolist()
    assert set(whole["boundary"]["classes"]) == set(CLASSES)
    assert whole["boundary"]["boundary_miou"] > 0
    assert sum(whole["calibration"]["pixels"]) == int((MASKS != 255).sum())


def test_what_was_not_asked_for_is_not_in_the_report():
    report = run([batch(*range(7))], batch_size=7)
    assert report.boundary is report.reliability is report.per_image is None
    assert not {"boundary", "calibration"} & set(report.to_mapping())
