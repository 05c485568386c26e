import numpy as np
import pytest
import torch

from unetdist.errors import ConfigError
from unetdist.evaluation.boundary import boundary_counts
from unetdist.evaluation.calibration import reliability_counts
from unetdist.evaluation.image_counts import ImageCounts, write_per_image
from unetdist.evaluation.metrics import PoissonBootstrap, confusion_matrix


def image(number):
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(3, 40, 30, generator=generator)
    return logits, logits.argmax(0), torch.randint(0, 3, (40, 30), generator=generator).to(torch.uint8)


def test_the_device_is_read_but_now_and_then_and_every_image_counts(monkeypatch):
    images = ImageCounts(3, replicates=5, boundary=True, calibration=True, num_kept=10)
    at_once = PoissonBootstrap(3, replicates=5)
    reads = []
    monkeypatch.setattr(images, "READ_EVERY", 4)
    read = images.read
    monkeypatch.setattr(images, "read", lambda: (reads.append(len(images._unread)), read()))
    for number in range(10):
        images.add(number, *image(number))
    assert reads == [4, 4]
    images.read()
    images.read()
    several = [image(number) for number in range(10)]
    each = [confusion_matrix(pred, mask, 3) for _, pred, mask in several]
    for number, confusion in enumerate(each):
        at_once.add(number, confusion.numpy())
    assert images.confusion.equal(sum(each))
    assert images.per_image.equal(torch.stack(each))
    assert (images.bootstrap.sums == at_once.sums).all()
    assert images.boundary.equal(sum(boundary_counts(pred, mask, 3) for _, pred, mask in several))
    assert images.reliability.equal(sum(reliability_counts(logits, mask) for logits, _, mask in several))


@pytest.mark.parametrize(("boundary", "calibration"), [(False, False), (True, False), (False, True)])
def test_sums_of_ranks_are_those_of_one(boundary, calibration):
    whole, *ranks = (
        ImageCounts(3, replicates=5, boundary=boundary, calibration=calibration, num_kept=4) for _ in range(3)
    )
    for number in range(4):
        for counts in (whole, ranks[number % 2]):
            counts.add(number, *image(number))
    total = ranks[0].to_vector() + ranks[1].to_vector()
    ranks[0].load_vector(total)
    assert total.equal(whole.to_vector())
    assert ranks[0].to_vector().equal(total)
    assert ranks[0].bootstrap.interval() == whole.bootstrap.interval()
    assert bool(whole.boundary.any()) == boundary
    assert bool(whole.reliability.any()) == calibration


def test_the_matrices_of_all_images_are_written_with_their_names(tmp_path):
    matrices = np.arange(8).reshape(2, 2, 2)
    write_per_image(str(tmp_path / "all.npz"), matrices, ["a/1", "b/ü"], ["sky", "road"])
    with np.load(tmp_path / "all.npz") as read:
        assert read["ids"].tolist() == [0, 1]
        assert read["keys"].tolist() == ["a/1", "b/ü"]
        assert read["classes"].tolist() == ["sky", "road"]
        assert np.array_equal(read["confusion"], matrices)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    matrices = np.zeros((1, 1, 1), np.int64)
    with pytest.raises(ConfigError, match=r"--per-image \(all.csv\) is written as .npz; give it a name that"):
        write_per_image("all.csv", matrices, ["a"], ["sky"])
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"--per-image \(.+\) cannot be written \(.+\); give another file"):
        write_per_image(str(tmp_path / "taken" / "all.npz"), matrices, ["a"], ["sky"])
