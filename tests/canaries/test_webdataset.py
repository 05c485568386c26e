"""What we rely on in the stock webdataset: it reads our shards, and ends a key at its first dot."""

import json

import numpy as np
import pytest

from unetdist.data.shards import encode_mask, escape_key, open_shard

webdataset = pytest.importorskip("webdataset")

# webdataset leaves the tar for the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MASK = np.eye(4, dtype=np.uint8)


def test_stock_webdataset_reads_our_shards(tmp_path):
    keys = ["day.1/x.y", "50%", "__folder__/a", "ü" * 60 + "/" + "b" * 120]
    with open_shard(tmp_path / "000000.tar") as writer:
        for key in keys:
            writer.add(key, b"image", "jpg", encode_mask(MASK), {"key": key})
    samples = list(webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [escape_key(key) for key in keys]
    assert [json.loads(sample["json"])["key"] for sample in samples] == keys
    assert all(sample["jpg"] == b"image" and sample["mask.png"] == encode_mask(MASK) for sample in samples)


def test_webdataset_decodes_our_masks(tmp_path):
    with open_shard(tmp_path / "000000.tar") as writer:
        writer.add("a", b"", "jpg", encode_mask(MASK), {})
    dataset = webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False)
    (sample,) = dataset.decode("l8", only="mask.png")
    assert np.array_equal(sample["mask.png"], MASK)


def test_webdataset_ends_a_key_at_its_first_dot():
    """Why dots in keys are escaped."""
    assert webdataset.tariterators.base_plus_ext("a.b/x.1.jpg") == ("a.b/x", "1.jpg")
