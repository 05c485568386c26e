"""The same samples give the same bytes, and the index finds them."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetdist.data.manifest import Shard
from unetdist.data.shards import encode_index, encode_mask, escape_key, index_path, open_shard
from unetdist.data.tar_index import index_tar, read_key

KEYS = ("a", "city/b.c", "ümlaut%2E/" + "long" * 60, "__skipped__/x", "not-utf8-\udce9")


MASK = encode_mask(np.arange(12, dtype=np.uint8).reshape(3, 4))


def write_shard(path: Path, keys=KEYS) -> Shard:
    with open_shard(path) as writer:
        for number, key in enumerate(keys):
            writer.add(key, bytes([number]) * (1 + 700 * number), "jpg", MASK, {"key": key})
    return writer.shard


def test_a_row_of_the_index_finds_the_sample(tmp_path):
    path = tmp_path / "000000.tar"
    write_shard(path)
    data, index = path.read_bytes(), np.load(index_path(path))
    assert index.dtype == np.int64
    assert index.shape == (len(KEYS), 6)
    for number, (header, image, image_size, mask, mask_size, crc32) in enumerate(index):
        assert data[image : image + image_size] == bytes([number]) * (1 + 700 * number)
        assert data[mask : mask + mask_size] == MASK
        assert zlib.crc32(bytes([number]) * (1 + 700 * number) + MASK) == crc32
        assert read_key(path, int(header)) == KEYS[number]


def test_tarfile_reads_every_member(tmp_path):
    write_shard(tmp_path / "0.tar")
    with tarfile.open(tmp_path / "0.tar") as tar:
        names = tar.getnames()
        assert json.load(tar.extractfile(names[-1])) == {"key": KEYS[-1]}
    assert names == [f"{escape_key(key)}.{ext}" for key in KEYS for ext in ("jpg", "mask.png", "json")]


def test_same_samples_give_the_same_bytes_and_the_hash_of_the_file(tmp_path):
    first, second = write_shard(tmp_path / "0.tar"), write_shard(tmp_path / "sub" / "0.tar")
    assert first == second
    data = (tmp_path / "0.tar").read_bytes()
    assert data == (tmp_path / "sub" / "0.tar").read_bytes()
    index = hashlib.sha256((tmp_path / "0.tar.idx").read_bytes()).hexdigest()
    assert first == Shard("0.tar", len(KEYS), len(data), hashlib.sha256(data).hexdigest(), index)


def test_a_shard_whose_writing_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), open_shard(tmp_path / "0.tar") as writer:
        writer.add("a", b"1", "jpg", MASK, {"not JSON": object()})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_has_an_empty_index(tmp_path):
    assert write_shard(tmp_path / "0.tar", keys=()).num_samples == 0
    assert np.load(tmp_path / "0.tar.idx").shape == index_tar(tmp_path / "0.tar").shape == (0, 6)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_escaping_a_key_can_be_undone_and_leaves_no_dot(key):
    assert unquote(escape_key(key)) == key
    assert "." not in escape_key(key)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_mask_comes_back_from_its_png_and_no_row_is_filtered(height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    data = encode_mask(mask)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), mask)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), mask)
    size = int.from_bytes(data[33:37], "big")
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()


def test_the_index_lies_beside_its_tar(tmp_path):
    write_shard(tmp_path / "0.tar")
    assert index_path(tmp_path / "0.tar") == tmp_path / "0.tar.idx"
    assert (tmp_path / "0.tar.idx").is_file()
    assert (tmp_path / "0.tar.idx").read_bytes() == encode_index(np.load(tmp_path / "0.tar.idx"))
