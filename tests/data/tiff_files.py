"""Writes uncompressed TIFFs as other programs do: any number of bands, byte order and page."""

import struct

import numpy as np

RGB, GREY = 2, 1


def tiff(
    *pages: np.ndarray,
    photometric: int = GREY,
    extra: tuple[int, ...] = (),
    planar: bool = False,
    orientation: int = 1,
    subfiles: tuple[int, ...] = (),
    order: str = "<",
    big: bool = False,
) -> bytes:
    """Pages (H, W) or (H, W, bands) of any dtype in one strip each."""
    start = b"II" if order == "<" else b"MM"
    offset, count = ("Q", "Q") if big else ("I", "H")
    head = start + struct.pack(f"{order}HHH", 43, 8, 0) if big else start + struct.pack(f"{order}H", 42)
    at = len(head) + struct.calcsize(offset)
    body, pointers = b"", [at - struct.calcsize(offset)]
    for number, page in enumerate(pages):
        page = page[..., None] if page.ndim == 2 else page
        height, width, bands = page.shape
        values = page.transpose(2, 0, 1) if planar else page
        data = np.ascontiguousarray(values).astype(page.dtype.newbyteorder(order)).tobytes()
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        size = len(data) // (bands if planar else 1)
        where = [at + len(body) + size * band for band in range(bands if planar else 1)]
        fields = {
            254: ("I", [subfiles[number] if subfiles else 0]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [page.dtype.itemsize * 8] * bands),
            259: ("H", [1]),
            262: ("H", [photometric]),
            273: ("I", where),
            274: ("H", [orientation]),
            277: ("H", [bands]),
            278: ("I", [height]),
            279: ("I", [size] * len(where)),
            284: ("H", [2 if planar else 1]),
            **({338: ("H", list(extra))} if extra else {}),
            339: ("H", [kind] * bands),
        }
        body += data
        body += b"\0" * (len(body) % 2)
        inline = struct.calcsize(offset)
        entries = b""
        for tag, (letter, numbers) in fields.items():
            packed = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
            entries += struct.pack(f"{order}HH{offset}", tag, {"H": 3, "I": 4}[letter], len(numbers))
            if len(packed) > inline:
                entries += struct.pack(order + offset, at + len(body))
                body += packed + b"\0" * (len(packed) % 2)
            else:
                entries += packed.ljust(inline, b"\0")
        pointers.append(at + len(body))
        body += struct.pack(order + count, len(fields)) + entries + struct.pack(order + offset, 0)
    whole = bytearray(head + bytes(at - len(head)) + body)
    place = pointers[0]
    for pointer in pointers[1:]:
        struct.pack_into(order + offset, whole, place, pointer)
        place = pointer + struct.calcsize(count) + 14 * (4 + 2 * struct.calcsize(offset))
        place -= 0 if extra else 4 + 2 * struct.calcsize(offset)
    return bytes(whole)
