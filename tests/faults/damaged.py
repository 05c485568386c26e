"""Picture files that are damaged, or claim what they do not hold; the same ones in every run."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


@cache
def whole():
    """A small picture of each kind."""
    return {
        "png": encoded("PNG"),
        "grey.png": encoded("PNG", "L"),
        "table.png": encoded("PNG", "P"),
        "jpg": encoded("JPEG", quality=90),
        "progressive.jpg": encoded("JPEG", progressive=True),
        "tif": encoded("TIFF"),
        "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
        "webp": encoded("WEBP"),
        "lossless.webp": encoded("WEBP", lossless=True),
        "gif": encoded("GIF", "P"),
        "bmp": encoded("BMP"),
        "ppm": encoded("PPM"),
    }


def chunk(name, body):
    return struct.pack(">I4s", len(body), name) + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, *before, body, color=0):
    """A PNG of 8 bits that says of itself what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *before, chunk(b"IDAT", body), chunk(b"IEND", b"")))


def claiming(data, at, layout, *sizes):
    return data[:at] + struct.pack(layout, *sizes) + data[at + struct.calcsize(layout) :]


@cache
def impossible():
    """What no decoder can read, and some take gigabytes or minutes to find out."""
    good = whole()
    bomb = zlib.compress(bytes(20 * 2**20), 9)
    rows = zlib.compress(bytes(33 * 24))
    return {
        "16_bytes.png": good["png"][:16],
        "no_size.png": png(0, 0, body=b""),
        "claims.png": png(60000, 60000, body=rows),
        "claims_all.png": png(2**31 - 1, 2**31 - 1, body=rows),
        "data.png": png(32, 24, body=zlib.compress(np.random.default_rng(0).bytes(2**19))),
        "chunk.png": png(32, 24, struct.pack(">I4s", 2**31 - 1, b"teXt"), body=rows),
        "text.png": png(32, 24, chunk(b"zTXt", b"k\0\0" + bomb), body=zlib.compress(bytes(97 * 24)), color=2),
        "profile.png": png(32, 24, chunk(b"iCCP", b"k\0\0" + bomb), body=rows),
        "claims.jpg": claiming(good["jpg"], good["jpg"].index(b"\xff\xc0") + 5, ">HH", 65500, 65500),
        "claims2.jpg": claiming(
            good["progressive.jpg"], good["progressive.jpg"].index(b"\xff\xc2") + 5, ">HH", 65500, 65500
        ),
        "claims.gif": claiming(good["gif"], 6, "<HH", 65535, 65535),
        "claims.bmp": claiming(good["bmp"], 18, "<ii", 100000, 100000),
        "claims.ppm": b"P6 100000 100000 255\n" + bytes(100),
        "pointer.png": POINTER,
        "empty.png": b"",
        "page.jpg": b"<html>not found</html>",
    }


def damaged(number):
    """(kind, data) of a whole picture with some bytes cut off, changed or lost; PNGs often with right checksums."""
    random = np.random.default_rng(number)
    kind, data = list(whole().items())[number % len(whole())]
    data = bytearray(data)
    match random.integers(4):
        case 0:
            data = data[: random.integers(len(data))]
        case 1:
            for _ in range(random.integers(1, 6)):
                data[random.integers(min(len(data), 200))] = random.integers(256)
        case 2:
            for _ in range(random.integers(1, 30)):
                data[random.integers(len(data))] = random.integers(256)
        case _:
            at = random.integers(len(data))
            data[at : at + random.integers(1, 9)] = b""
    data = bytes(data)
    return kind, with_checksums(data) if kind.endswith("png") and random.integers(2) else data


def with_checksums(data):
    """A PNG whose chunks have the checksums of what is in them: decoders go on to their contents."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        fixed += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return fixed + data[at:]
