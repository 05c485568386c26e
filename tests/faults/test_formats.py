"""Damaged and forged files, met by whole commands: each is refused in words, at once, or read as it was written."""

from pathlib import Path

import pytest

from tests.sharding.test_foreign import pack
from unetdist.__main__ import run
from unetdist.errors import DataError


@pytest.fixture
def tars(tmp_path) -> Path:
    """A folder for tars of others, and labels beside it."""
    (tmp_path / "Labels.txt").write_text("0 0 0 ground\n9 0 9 tree\n")
    (tmp_path / "tars").mkdir()
    return tmp_path / "tars"


def index(tars: Path, *options: str) -> int:
    labels = ["--labels", str(tars.parent / "Labels.txt")]
    return run(["shard", "index", str(tars), *labels, "--workers", "1", *options])


def forged_header(size: bytes) -> bytes:
    """A tar header with `size` in its size field and a checksum that fits."""
    header = bytearray(512)
    header[:1], header[124 : 124 + len(size)], header[257:263] = b"x", size, b"ustar\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("options", [(), ("--mask-ext", "seg.png")])
def test_a_negative_size_in_a_tar_ends_at_once(tars, options):
    (tars / "0.tar").write_bytes(forged_header(b"-0000001000"))
    with pytest.raises(DataError, match=r"0\.tar"):
        index(tars, *options)


def test_two_tars_joined_by_cat_are_told(tars, tmp_path):
    pack(tmp_path / "a.tar", ["a"])
    pack(tmp_path / "b.tar", ["b"])
    (tars / "0.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(DataError, match=r"0\.tar: has data after its end-of-archive.*--ignore-zeros"):
        index(tars, "--mask-format", "ids")
    (tars / "0.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    assert index(tars, "--mask-format", "ids") == 0
