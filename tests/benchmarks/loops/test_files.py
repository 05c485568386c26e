from itertools import islice

import pytest
import torch

from tests.benchmarks.loops.files import DEVICE_BATCHES, MEAN, STD, Files, fed, on_device, open_files
from tests.benchmarks.loops.looped import small_job


@pytest.mark.parametrize("reader", ["pil", "opencv"])
def test_floats_are_the_normalised_bytes(tmp_path, reader):
    job = small_job(tmp_path)
    samples = []
    for as_bytes in (True, False):
        torch.manual_seed(3)
        samples.append(Files(job, reader=reader, as_bytes=as_bytes)[1])
    (pixels, mask), (floats, longs) = samples
    assert pixels.shape == (3, 16, 24)
    assert pixels.dtype == mask.dtype == torch.uint8
    assert mask.shape == (16, 24)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(floats, (pixels - mean) / std)
    assert torch.equal(longs, mask.long())
    assert longs.dtype == torch.int64


def test_both_readers_read_the_same_masks(tmp_path):
    job = small_job(tmp_path)
    masks = []
    for reader in ("pil", "opencv"):
        torch.manual_seed(0)
        masks.append(Files(job, reader=reader, as_bytes=True)[0][1])
    assert torch.equal(*masks)


def test_batches_have_no_end(tmp_path):
    job = small_job(tmp_path)
    for image, mask in islice(fed(open_files(job), job), 10):
        assert image.shape == (2, 3, 16, 24)
        assert mask.shape == (2, 16, 24)


def test_a_few_batches_are_repeated_on_the_device(tmp_path):
    job = small_job(tmp_path)
    batches = list(islice(on_device(open_files(job), job), DEVICE_BATCHES + 1))
    assert batches[0][0] is batches[-1][0]
    assert batches[0][0] is not batches[1][0]
