import numpy as np
import pytest
import torch

from tests.data.small_shards import NUM_CLASSES, numbered_sample, write_small_shards
from tests.data.test_loader import BAD
from tests.distributed.launcher import run_ranks
from unetdist.data.access import DataConfig, open_reader
from unetdist.data.kept import keep, resident_bytes
from unetdist.data.manifest import Manifest
from unetdist.errors import DataError

SIZES = [(12, 16), (20, 9), (7, 31)]


def kept_of(folder, *, told=None, store="device", **data):
    cfg = DataConfig(train=str(folder), **{"num_workers": 0, **data})
    manifest = Manifest.load(folder)
    is_connected = torch.distributed.is_initialized()
    return keep(
        cfg,
        manifest,
        open_reader(cfg, folder, manifest),
        channels=3,
        num_classes=NUM_CLASSES,
        rank=torch.distributed.get_rank() if is_connected else 0,
        world_size=torch.distributed.get_world_size() if is_connected else 1,
        local_world_size=1,
        device=torch.device("cpu"),
        store=store,
        at=(told if told is not None else []).append,
    )


def check_kept(folder, num_samples):
    kept = kept_of(folder)
    assert len(kept.places) == num_samples
    for sample_id, (first, height, width) in enumerate(kept.places):
        image, mask = numbered_sample(sample_id, SIZES[sample_id % 3])
        pixels = slice(first, first + height * width)
        np.testing.assert_array_equal(kept.images[pixels].reshape(height, width, 3), image)
        np.testing.assert_array_equal(kept.masks[pixels].reshape(height, width), mask)
        assert kept.counts[sample_id].tolist() == [int((mask == index).sum()) for index in range(NUM_CLASSES)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_process_has_all_pictures(tmp_path, world_size):
    write_small_shards(tmp_path, [1, 0, 4], sizes=SIZES)
    run_ranks(check_kept, world_size, tmp_path, 5)


def test_more_processes_than_pictures(tmp_path):
    write_small_shards(tmp_path, [2], sizes=SIZES)
    run_ranks(check_kept, 3, tmp_path, 2)


def test_it_takes_what_the_manifest_says(tmp_path):
    kept = kept_of(tmp_path) if write_small_shards(tmp_path, [3], sizes=SIZES) else None
    manifest = Manifest.load(tmp_path)
    pixels = sum(height * width for height, width in SIZES)
    assert kept.images.numel() + kept.masks.numel() == pixels * 4
    assert resident_bytes(manifest, 3) == manifest.num_pixels * 4


def test_a_bad_sample_takes_nothing(tmp_path, caplog):
    write_small_shards(tmp_path, [3], encoded={1: BAD})
    kept = kept_of(tmp_path, on_bad_sample="blank")
    assert [kept.is_bad(sample_id) for sample_id in range(3)] == [False, True, False]
    assert len(kept.masks) == 2 * 12 * 16
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "left blank: " in warning
    assert "frame 1: image cannot be read" in warning


def test_nothing_but_bad_samples(tmp_path):
    write_small_shards(tmp_path, [2], encoded={0: BAD, 1: BAD})
    kept = kept_of(tmp_path, on_bad_sample="blank")
    assert kept.is_bad(0)
    assert kept.is_bad(1)


def error_of(folder):
    with pytest.raises(DataError) as caught:
        kept_of(folder)
    return str(caught.value)


def test_all_processes_end_where_one_finds_a_bad_sample(tmp_path):
    write_small_shards(tmp_path, [4], encoded={3: BAD})
    other, finder = run_ranks(error_of, 2, tmp_path)
    assert "frame 3: image cannot be read" in finder
    assert other.endswith(
        "another process could not decode its part of the pictures, and tells why; this one ends with it."
    )
    assert str(tmp_path) in other


def test_it_tells_where_it_is(tmp_path):
    write_small_shards(tmp_path, [5])
    told = []
    kept_of(tmp_path, told=told)
    assert told[:2] == ["decoding pictures: 1 of 5", "decoding pictures: 2 of 5"]
    assert told[-1] == "decoding pictures: exchanging them"
