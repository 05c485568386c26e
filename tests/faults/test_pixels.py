"""Each kind of image reaches the network with equal pixels through every door, or is refused in the same words.

`python -m tests.faults.test_pixels` prints the table of kinds and doors.
"""

import functools
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.tiff_files import GREY, RGB, tiff
from unetdist import UNet
from unetdist.data.decode import decode_image
from unetdist.data.image_file import SIXTEEN_BITS
from unetdist.data.labels import Label, Palette
from unetdist.errors import DataError
from unetdist.model import unet
from unetdist.model.config import UNetConfig
from unetdist.model.saved_model import SavedModel
from unetdist.predict import predict_files
from unetdist.predict.export.agreement import find_check_images
from unetdist.sharding.stored_image import store_image

LAUNCH = Path(__file__).parents[2] / "launch"
PALETTE = Palette((Label(0, "dark", (0, 0, 0), 0), Label(1, "bright", (255, 255, 255), 1)))
BYTES, TWELVE_BITS, FRACTIONS, SIGNED = (0.0, 255.0), (0.0, 4095.0), (0.0, 1.0), (-1000.0, 3000.0)


class Kind(NamedTuple):
    data: bytes
    suffix: str
    channels: int
    image_range: tuple[float, float] | None = None
    refused: str = ""
    """Words in which all doors refuse it."""


def drawn(bands: int, image_range: tuple[float, float] = BYTES, dtype: str = "uint8") -> np.ndarray:
    random = np.random.default_rng(bands).random((8, 12, bands))
    values = image_range[0] + random * (image_range[1] - image_range[0])
    return (values if dtype.startswith("f") else np.rint(values)).astype(dtype)


def saved_by_pillow(pixels: np.ndarray, kind: str, orientation: int = 1, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image.save(file, kind, **options)
    return file.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    return cv2.imencode(".png", pixels[..., order])[1].tobytes()


def kinds() -> dict[str, Kind]:
    found = {}
    for bands, color in ((1, "grey"), (3, "RGB"), (4, "4 bands")):
        extra, photometric = ((0,) if bands == 4 else ()), (GREY if bands == 1 else RGB)
        lossless = {"lossless": True}
        for kind, options in (("PNG", {}), ("TIFF", {}), ("JPEG", {}), ("WEBP", lossless), ("BMP", {})):
            if (kind, bands) in (("JPEG", 4), ("WEBP", 1), ("BMP", 4)):
                continue
            data = saved_by_pillow(drawn(bands), kind, **options)
            if kind == "TIFF":
                data = tiff(drawn(bands), photometric=photometric, extra=extra)
            found[f"8-bit {color} {kind}"] = Kind(data, kind.lower(), bands)
        for name, image_range in (("12-bit", TWELVE_BITS), ("16-bit", SIXTEEN_BITS)):
            pixels = drawn(bands, image_range, "uint16")
            found[f"{name} {color} PNG"] = Kind(deep_png(pixels), "png", bands, image_range)
            data = tiff(pixels, photometric=photometric, extra=extra)
            found[f"{name} {color} TIFF"] = Kind(data, "tif", bands, image_range)
        for name, image_range, dtype in (("float", FRACTIONS, "float32"), ("int32", SIGNED, "int32")):
            data = tiff(drawn(bands, image_range, dtype), photometric=photometric, extra=extra)
            found[f"{name} {color} TIFF"] = Kind(data, "tif", bands, image_range)
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        for orientation in range(1, 9) if kind in ("JPEG", "TIFF") else (3, 6):
            data = saved_by_pillow(drawn(3), kind, orientation)
            found[f"EXIF {orientation} {kind}"] = Kind(data, kind.lower(), 3)
    for mode, kind in (("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("CMYK", "JPEG"), ("RGB", "JPEG")):
        file = io.BytesIO()
        Image.fromarray(drawn(3)).convert(mode).save(file, kind)
        suffix = "jfif" if mode == "RGB" else kind.lower()
        found[f"mode {mode} {suffix.upper()}"] = Kind(file.getvalue(), suffix, 3)
    return found | refused_kinds()


def refused_kinds() -> dict[str, Kind]:
    grey = drawn(1)
    first, second = (Image.fromarray(drawn(3) // part) for part in (1, 2))
    animation = io.BytesIO()
    first.save(animation, "GIF", save_all=True, append_images=[second])
    fractions = drawn(1, FRACTIONS, "float32")
    holes = fractions.copy()
    holes[0, 0] = np.nan
    return {
        "TIFF of 2 pages": Kind(tiff(grey, grey), "tif", 1, refused="holds 2 frames or pages"),
        "GIF of 2 frames": Kind(animation.getvalue(), "gif", 3, refused="holds 2 frames or pages"),
        "8-bit 2 bands TIFF": Kind(tiff(drawn(2), extra=(0,)), "tif", 1, refused="image has 2 bands"),
        "8-bit 6 bands TIFF": Kind(tiff(drawn(6), extra=(0,) * 5), "tif", 3, refused="image has 6 bands"),
        "16-bit 6 bands TIFF": Kind(
            tiff(drawn(6, TWELVE_BITS, "uint16"), extra=(0,) * 5), "tif", 3, TWELVE_BITS, "image has 6 bands"
        ),
        "float TIFF, no range": Kind(
            tiff(fractions), "tif", 1, None, r"image has float32 pixels of .*--image-range LOW HIGH"
        ),
        "float TIFF with NaN": Kind(tiff(holes), "tif", 1, FRACTIONS, "1 values that are no finite numbers"),
        "damaged PNG": Kind(saved_by_pillow(grey, "PNG")[:60], "png", 1, refused="cannot be read"),
    }


KINDS = kinds()


@functools.cache
def network(channels: int) -> unet.UNet:
    flat = [0.0] * channels, [1.0] * channels
    config = UNetConfig(widths=(2,), in_channels=channels, norm="none")
    return unet.UNet(config, 2, *flat).eval()


def saved_model(kind: Kind) -> SavedModel:
    config = {"mean": [0.0] * kind.channels, "std": [1.0] * kind.channels}
    return SavedModel(network(kind.channels), PALETTE, None, config, kind.image_range)


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[np.ndarray]]:
    """What comes into a network, each (H, W, C)."""
    seen: list[np.ndarray] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].permute(1, 2, 0).numpy()))
    yield seen
    hook.remove()


def through_shards(kind: Kind, file: Path) -> np.ndarray:
    """By a mask that was drawn on the image as viewers show it."""
    shown = through_files(kind, file).shape[:2] if not kind.refused else (8, 12)
    picture = store_image(kind.data, shown, image_range=kind.image_range, exif="upright")
    return decode_image(picture.data, kind.channels)


def through_files(kind: Kind, file: Path) -> np.ndarray:
    saved = saved_model(kind)
    with watched(saved.model) as seen:
        failures = predict_files(saved, str(file.parent), file.parent.parent / "out", num_workers=1, overwrite=True)
    if failures:
        raise DataError(failures[0].reason)
    return seen[0]


def through_python(kind: Kind, image: object) -> np.ndarray:
    model = UNet(saved_model(kind))
    with watched(model) as seen:
        model.predict(image)
    return seen[0]


def through_pillow(kind: Kind, file: Path, *, is_loaded: bool) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if is_loaded:
                image.load()
            return through_python(kind, image)
    except OSError:
        raise DataError("Pillow itself does not open it") from None


def through_export(kind: Kind, file: Path) -> np.ndarray:
    ((image, _),) = find_check_images(saved_model(kind), str(file), limit=1)[1]
    return image[0].permute(1, 2, 0).numpy()


DOORS: dict[str, Callable[[Kind, Path], np.ndarray]] = {
    "predict": through_files,
    "shards": through_shards,
    "Python path": through_python,
    "Pillow image": functools.partial(through_pillow, is_loaded=False),
    "loaded Pillow image": functools.partial(through_pillow, is_loaded=True),
    "export": through_export,
}
LOST = ("loaded by Pillow", "Pillow itself does not open it")
"""Words where Pillow has thrown away, or does not know, what the file holds."""


def outcomes(kind: Kind, folder: Path) -> dict[str, np.ndarray | str]:
    """The pixels that each door lets through, or its words."""
    file = folder / "in" / f"image.{kind.suffix}"
    file.parent.mkdir()
    file.write_bytes(kind.data)
    found: dict[str, np.ndarray | str] = {}
    for name, door in DOORS.items():
        try:
            found[name] = door(kind, file)
        except DataError as error:
            found[name] = str(error).removeprefix(f"{file}: ")
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_door_gives_the_network_the_same_pixels(name, tmp_path):
    kind = KINDS[name]
    found = outcomes(kind, tmp_path)
    if kind.image_range is not None and not kind.refused:
        check_values(name, kind, found["predict"])
    first = found["predict"]
    assert isinstance(first, str) == bool(kind.refused), first
    for door, result in found.items():
        if isinstance(result, str) and "Pillow" in door and any(words in result for words in LOST):
            continue
        if kind.refused:
            assert re.search(kind.refused, str(result)), door
        else:
            assert np.array_equal(result, first), f"{door}: {result}"
            assert result.dtype == np.uint8


def check_values(name: str, kind: Kind, found: np.ndarray) -> None:
    """Values are scaled by the range."""
    low, high = kind.image_range
    dtype = {"12": "uint16", "16": "uint16", "fl": "float32", "in": "int32"}[name[:2]]
    values = drawn(kind.channels, kind.image_range, dtype).astype(np.float64)
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert np.abs(found - expected).max() <= (1 if dtype == "float32" else 0)


def test_four_bands_keep_their_fourth():
    for name in ("8-bit 4 bands TIFF", "16-bit 4 bands TIFF", "12-bit 4 bands PNG"):
        assert store_image(KINDS[name].data, (8, 12), image_range=KINDS[name].image_range).channels == 4


def table() -> str:
    """Markdown: kinds by doors."""
    rows = ["| kind of image | range | " + " | ".join(DOORS) + " |", "|---" * (len(DOORS) + 2) + "|"]
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes(kind, Path(folder))
        first = found["predict"]
        cells = []
        for pixels in found.values():
            if isinstance(pixels, str):
                cells.append(pixels.split(":")[0].split(";")[0][:70])
            else:
                cells.append("equal" if not isinstance(first, str) and np.array_equal(pixels, first) else "DIFFERS")
        values = "unknown" if kind.image_range is None else "{:g} {:g}".format(*kind.image_range)
        rows.append(f"| {name} | {values} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
