"""Tars, their index and the manifest: same bytes for same samples, and nothing cut off goes unnoticed."""

import dataclasses
import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetdist.data.manifest import MANIFEST_NAME, Manifest, Shard
from unetdist.data.shards import encode_mask, escape_key, index_path, load_index, open_shard, unescape_key
from unetdist.data.tar_index import index_tar, read_key
from unetdist.errors import DataError

KEYS = ("a", "city/b.c", "ümlaut%2E/" + "long" * 60, "__skipped__/x")
MASK = encode_mask(np.arange(12, dtype=np.uint8).reshape(3, 4))


def write_shard(path: Path, keys=KEYS) -> Shard:
    with open_shard(path) as writer:
        for number, key in enumerate(keys):
            writer.add(key, bytes([number]) * (1 + 700 * number), "jpg", MASK, {"key": key})
    return writer.shard


def test_a_row_of_the_index_finds_the_sample(tmp_path):
    path = tmp_path / "000000.tar"
    write_shard(path)
    data, index = path.read_bytes(), load_index(path)
    assert index.dtype == np.int64
    assert index.shape == (len(KEYS), 5)
    for number, (header, image, image_size, mask, mask_size) in enumerate(index):
        assert data[image : image + image_size] == bytes([number]) * (1 + 700 * number)
        assert data[mask : mask + mask_size] == MASK
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
    assert first == Shard("0.tar", len(KEYS), len(data), hashlib.sha256(data).hexdigest())


def test_a_shard_whose_writing_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError), open_shard(tmp_path / "0.tar") as writer:
        writer.add("a", b"1", "jpg", MASK, {"not JSON": object()})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_has_an_empty_index(tmp_path):
    assert write_shard(tmp_path / "0.tar", keys=()).samples == 0
    assert load_index(tmp_path / "0.tar").shape == index_tar(tmp_path / "0.tar").shape == (0, 5)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_escaping_a_key_can_be_undone_and_leaves_no_dot(key):
    assert unescape_key(escape_key(key)) == key
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


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_indexed_as_tarfile_reads_them(tmp_path, format_):
    keys = [
        "a",
        "d" * 90 + "/" + "e" * 60,
        *(["f" * 200, "é" * 80] if format_ != tarfile.USTAR_FORMAT else []),
    ]
    path = tmp_path / "foreign.tar"
    with tarfile.open(path, "w", format=format_) as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, key in enumerate(keys):
            for ext in ("cls", "JPG", "seg.png"):
                member = tarfile.TarInfo(f"{key}.{ext}")
                member.size, member.uname = 1000 * number + 1, "someone"
                member.mtime = 0.5 if format_ == tarfile.PAX_FORMAT else 7
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname, link.size = tarfile.SYMTYPE, "x" * 200, 0
        tar.addfile(link) if format_ != tarfile.USTAR_FORMAT else None
    index = index_tar(path, mask_ext="seg.png")
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
    for row, key in zip(index, keys, strict=True):
        image, mask = members[f"{key}.JPG"], members[f"{key}.seg.png"]
        assert row.tolist()[1:] == [image.offset_data, image.size, mask.offset_data, mask.size]
        assert read_key(path, int(row[0])) == key


def test_our_own_index_is_what_the_indexer_finds(tmp_path):
    keys = [key for key in KEYS if not key.startswith("__")]
    write_shard(tmp_path / "0.tar", keys)
    assert np.array_equal(load_index(tmp_path / "0.tar"), index_tar(tmp_path / "0.tar"))
    write_shard(tmp_path / "1.tar")
    assert len(index_tar(tmp_path / "1.tar")) == len(KEYS)


def foreign(path: Path, names) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("cut", [512, 1024, 1025, 1536, 2600])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, cut):
    path = tmp_path / "0.tar"
    write_shard(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"0\.tar: cut off.*write this tar again"):
        index_tar(path)


def test_a_damaged_header_is_refused(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path)
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the header at byte 0 is wrong"):
        index_tar(path)
    path.write_bytes(b"\xff" * 4096)
    with pytest.raises(DataError, match="or no tar"):
        index_tar(path)


def test_a_damaged_pax_header_is_refused(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, ["x" * 150])
    data = bytearray(path.read_bytes())
    data[512] = ord("?")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged or sparse \(PAX header\); pack the tar anew"):
        index_tar(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "b.mask.png"], r"key a has no \.mask\.png \(it has \.jpg\).*--mask-ext"),
        (["a.jpg", "a.mask.png", "b.mask.png"], "key b has 0 images besides its mask"),
        (["a.jpg", "a.png", "a.mask.png"], "key a has 2 images besides its mask"),
        (["a.jpg", "a.mask.png", "a.JPG"], r"key a has two members \.jpg"),
        (
            ["a.jpg", "a.mask.png", "b.jpg", "b.mask.png", "a.json"],
            "members of key a do not lie side by side.*sort=name",
        ),
    ],
)
def test_samples_that_are_not_whole_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=r"foreign\.tar: .*" + message):
        index_tar(foreign(tmp_path / "foreign.tar", names))


def test_an_unknown_kind_of_member_is_refused(tmp_path):
    path = tmp_path / "0.tar"
    sparse = tarfile.TarInfo("a.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="byte 0 is of type b'S'"):
        index_tar(path)


MANIFEST = Manifest(
    shards=(Shard("000000.tar", 3, 10240, "ab"), Shard("000001.tar", 2, 512, "cd")),
    palette_records=({"index": 0, "id": 3, "name": "road", "color": [1, 2, 3]},),
    class_pixels=(5,),
    class_images=(2,),
    presence_pixels=(7,),
    ignored_pixels=1,
    num_samples=5,
    num_pixels=8,
    channels=3,
    mean=(0.25, 1.0, 2.0),
    std=(1.0, 2.0, 3.0),
    min_size=(3, 4),
    max_size=(5, 6),
    sizes=((3, 4, 5),),
    resize=(4, 3),
)


@pytest.mark.parametrize("resize", [None, (4, 3)])
def test_a_manifest_comes_back_as_it_was_saved(tmp_path, resize):
    manifest = dataclasses.replace(MANIFEST, resize=resize)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.shard_sizes.tolist() == [3, 2]
    assert manifest.num_classes == 1


def test_a_folder_without_manifest_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json here.*launch/shard_dataset\.py"):
        Manifest.load(tmp_path)


def change_manifest(folder: Path, **changes) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99, this program reads version 1"),
        ({"num_samples": 6}, "damaged.*num_samples is not the sum"),
        ({"colour": 1}, "damaged.*colour"),
        ({"sizes": 3}, "damaged"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, changes, message):
    MANIFEST.save(tmp_path)
    change_manifest(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"manifest\.json: {message}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "damaged, not JSON"), ("[1]", "not a manifest")])
def test_a_manifest_that_is_damaged_is_refused(tmp_path, text, message):
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path)


def test_the_index_lies_beside_its_tar(tmp_path):
    write_shard(tmp_path / "0.tar")
    assert index_path(tmp_path / "0.tar") == tmp_path / "0.tar.idx"
    assert (tmp_path / "0.tar.idx").is_file()
