"""Offsets as tarfile finds them; nothing cut off goes unnoticed."""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.small_shards import write_tar
from tests.data.test_shards import KEYS, write_shard
from unetdist.data.decode import PICTURE_SUFFIXES
from unetdist.data.tar_index import MemberNames, index_tar, read_key, read_members
from unetdist.errors import ConfigError, DataError


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_indexed_as_tarfile_reads_them(tmp_path, format_):
    keys = ["a", "d" * 90 + "/" + "e" * 60, *(["f" * 200, "é" * 80] if format_ != tarfile.USTAR_FORMAT else [])]
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
    index = index_tar(path, MemberNames("{stem}.seg.png"))
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
    for row, key in zip(index, keys, strict=True):
        image, mask = members[f"{key}.JPG"], members[f"{key}.seg.png"]
        crc32 = zlib.crc32(bytes(image.size + mask.size))
        assert row.tolist()[1:] == [image.offset_data, image.size, mask.offset_data, mask.size, crc32]
        assert read_key(path, int(row[0])) == key


def test_our_own_index_is_what_the_indexer_finds(tmp_path):
    keys = [key for key in KEYS if not key.startswith("__")]
    write_shard(tmp_path / "0.tar", keys)
    assert np.array_equal(np.load(tmp_path / "0.tar.idx"), index_tar(tmp_path / "0.tar"))
    write_shard(tmp_path / "1.tar")
    assert len(index_tar(tmp_path / "1.tar")) == len(KEYS)


@pytest.mark.parametrize("cut", [512, 1024, 1025, 1536, 2600])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, cut):
    path = tmp_path / "0.tar"
    write_shard(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"0\.tar: (cut off|damaged).*write this tar again"):
        index_tar(path)


def test_a_damaged_header_is_refused(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path)
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the header at byte 0 is wrong"):
        index_tar(path)
    data[1] ^= 1
    data[1024] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="the header at byte 1024 is wrong"):
        index_tar(path)
    path.write_bytes(b"\xff" * 4096)
    with pytest.raises(DataError, match="or no tar"):
        index_tar(path)


def test_a_member_whose_long_name_is_damaged_is_missed(tmp_path):
    path = tmp_path / "0.tar"
    write_shard(path, ["x" * 150])
    data = bytearray(path.read_bytes())
    data[512] = ord("?")
    path.write_bytes(data)
    with pytest.raises(DataError, match="key x{150} has 0 images"):
        index_tar(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "b.mask.png"], r"key a has no mask a\.mask\.png \(it has \.jpg\).*--mask-ext"),
        (["a.jpg", "a.mask.png", "b.mask.png"], "key b has 0 images besides its mask"),
        (["a.jpg", "a.png", "a.mask.png"], "key a has 2 images besides its mask"),
        (["a.jpg", "a.mask.png", "a.JPG"], r"key a has two members \.jpg; remove one"),
        (["a.jpg", "a.mask.png", "b.jpg", "b.mask.png", "a.json"], "members of key a are not side by side.*sort=name"),
    ],
)
def test_samples_that_are_not_whole_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=r"foreign\.tar: .*" + message):
        index_tar(write_tar(tmp_path / "foreign.tar", names))


def test_an_unknown_kind_of_member_is_refused(tmp_path):
    path = tmp_path / "0.tar"
    sparse = tarfile.TarInfo("a.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="byte 0 is of type b'S'"):
        index_tar(path)


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_every_kind_of_picture_may_be_the_image(tmp_path, suffix):
    assert len(index_tar(write_tar(tmp_path / "0.tar", [f"a{suffix}", "a.mask.png"]))) == 1


def test_templates_tell_images_and_masks_apart(tmp_path):
    names = ["d/1_leftImg8bit.png", "d/1_gtFine_color.PNG", "d/1_instances.png", "d/1_gtFine.json"]
    path = write_tar(tmp_path / "0.tar", names)
    index = index_tar(path, MemberNames("{stem}_gtFine_color.png", "{stem}_leftImg8bit.png"))
    assert index[:, 1::2].tolist() == [[512, 512 + 1024, index[0, 5]]]
    with pytest.raises(DataError, match=r"key d/1 has no mask 1_color\.png \(it has _leftImg8bit\.png\)"):
        index_tar(path, MemberNames("{stem}_color.png", "{stem}_leftImg8bit.png"))
    with pytest.raises(DataError, match=r"key d/1 has 0 images besides its mask .*\{stem\}_l\.png is expected\."):
        index_tar(path, MemberNames("{stem}_gtFine_color.png", "{stem}_l.png"))
    twice = write_tar(tmp_path / "1.tar", ["1_m.png", "1_M.png"])
    with pytest.raises(DataError, match="key 1 has two masks; remove one"):
        index_tar(twice, MemberNames("{stem}_m.png"))


@pytest.mark.parametrize("template", ["mask.png", "{stem}{stem}.png"])
def test_a_template_without_stem_is_refused(template):
    with pytest.raises(ConfigError, match=r"--mask-name \(.*\) must hold \{stem\} once; use for example"):
        MemberNames(template)


def test_errors_name_the_tar_as_its_user_knows_it(tmp_path):
    with pytest.raises(DataError, match=r"^s3://b/0\.tar: key a has no mask"):
        index_tar(write_tar(tmp_path / "0.tar", ["a.jpg"]), source="s3://b/0.tar")


def with_header(path: Path, field: slice, value: bytes, *, data: bytes = bytes(512)) -> Path:
    """A tar of one member whose header holds `value` in `field`, and a checksum that fits."""
    member = tarfile.TarInfo("a.png")
    member.size = len(data)
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(header + data + bytes(1024))
    return path


SIZE = slice(124, 136)


@pytest.mark.parametrize(
    "size",
    [
        b"-0000001000\0",
        b"0x000001000\0",
        b"\xff" * 10 + b"\xfe\x00",
        b"\x80" + b"\xff" * 11,
        b"\x80\0\0\0\x80" + bytes(7),
    ],
)
def test_a_size_is_made_of_octal_digits_alone(tmp_path, size):
    path = with_header(tmp_path / "0.tar", SIZE, size)
    with pytest.raises(DataError, match="byte 0"), open(path, "rb") as file:
        list(read_members(file, path))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (b"00000001000\0", 512),
        (b"000000001000", 512),
        (b"       1000 ", 512),
        (b"1000\0garbage", 512),
        (bytes(12), 0),
        (b" " * 12, 0),
        (b"\x80" + bytes(9) + b"\x02\x00", 512),
    ],
)
def test_sizes_are_read_as_tar_writes_them(tmp_path, size, expected):
    path = with_header(tmp_path / "0.tar", SIZE, size, data=bytes(expected))
    with open(path, "rb") as file:
        assert [member.size for member in read_members(file, path)] == [expected]


def test_a_size_beyond_the_file_is_refused(tmp_path):
    path = with_header(tmp_path / "0.tar", SIZE, b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7)
    with pytest.raises(DataError, match="cut off inside the member at byte 0"), open(path, "rb") as file:
        list(read_members(file, path))


@pytest.mark.parametrize("field", [b"-00001\0 ", b"0x1234\0 ", b"\xff" * 8])
def test_a_checksum_is_made_of_octal_digits_alone(tmp_path, field):
    path = with_header(tmp_path / "0.tar", SIZE, b"00000001000\0")
    data = bytearray(path.read_bytes())
    data[148:156] = field
    path.write_bytes(data)
    with pytest.raises(DataError, match="the header at byte 0 is wrong"), open(path, "rb") as file:
        list(read_members(file, path))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"13 size=-512\n", "cut off inside the member at byte 0"),
        (b"0 path=a.jpg\n", "the header at byte 0 is wrong"),
        (b"9" * 5000 + b" a=b\n", "the header at byte 0 is wrong"),
        (b"29 size=99999999999999999999\n", "cut off inside the member at byte 0"),
    ],
)
def test_what_an_extended_header_says_is_checked_too(tmp_path, records, message):
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = b"x", len(records)
    member = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    block = records + bytes(-len(records) % 512)
    path = tmp_path / "0.tar"
    path.write_bytes(extended.tobuf(tarfile.USTAR_FORMAT) + block + member + bytes(1024))
    with pytest.raises(DataError, match=message), open(path, "rb") as file:
        list(read_members(file, path))


def test_an_extended_header_need_not_be_utf8_and_may_not_be_huge(tmp_path):
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = b"x", 7
    member = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "0.tar"
    path.write_bytes(extended.tobuf(tarfile.USTAR_FORMAT) + b"7 \xff\xfe=b\n" + bytes(505) + member + bytes(1024))
    with open(path, "rb") as file:
        assert [member.name for member in read_members(file, path)] == ["a.png"]
    extended.size = 2**62
    path.write_bytes(extended.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="the header at byte 0 is wrong"):
        index_tar(path)


def test_what_follows_the_end_is_told_and_zeros_are_not(tmp_path):
    first, second, both = (tmp_path / f"{name}.tar" for name in ("first", "second", "both"))
    for path, key in ((first, "a"), (second, "b")):
        write_tar(path, [f"{key}.jpg", f"{key}.mask.png"])
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"both\.tar: has data after its end.*tar --ignore-zeros -xf"):
        index_tar(both)
    both.write_bytes(first.read_bytes() + bytes(2**20))
    assert np.array_equal(index_tar(both), index_tar(first))
