"""What is written of a prediction, and whether it is there already."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unetdist.data import drawing
from unetdist.data.labels import Palette
from unetdist.errors import DataError
from unetdist.predict.georeference import NOWHERE, Georeference, tiff_tags
from unetdist.predict.image import Picture, Prediction
from unetdist.storage import files as storage

# Of zlib's levels: for pictures of few classes a fourth of the time of the usual one.
_FAST = 1


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Which files are written for an image NAME, beside NAME_ids.png: each whole or not at all."""

    color: bool = False
    """NAME_color.png: the classes in the colours of Labels.txt, at the image's size."""

    overlay: bool = False
    """NAME_overlay.png: the image under its classes' colours, with a legend."""

    probabilities: bool = False
    """NAME_probabilities.tif: one page of 8 bits per class, in 255ths; its description names the class."""

    def files(self, target: Path, suffix: str = ".png") -> list[Path]:
        """Those of an image, the ids last: where they are, the others are."""
        wanted = {
            f"_probabilities{TIFF}": self.probabilities,
            f"_overlay{PNG}": self.overlay,
            f"_color{suffix}": self.color,
        }
        return [Path(f"{target}{end}") for end, is_on in wanted.items() if is_on] + [Path(f"{target}_ids{suffix}")]

    def are_there(self, target: Path) -> bool:
        """Whether all of an image's files exist."""
        return any(all(file.exists() for file in self.files(target, suffix)) for suffix in (PNG, TIFF))

    def write(self, target: Path, picture: Picture, prediction: Prediction, palette: Palette) -> None:
        """Write them; a GeoTIFF's are GeoTIFFs, NAME_ids.tif and NAME_color.tif.

        Raises:
            DataError: the disk is full, or the folder cannot be written to.
        """
        place = picture.georeference
        write_flat = _write_tiff if place else _write_fast
        if prediction.probabilities is not None:
            _write_pages(Path(f"{target}_probabilities{TIFF}"), prediction.probabilities, palette, place)
        if self.overlay:
            drawn = drawing.overlay(picture.pixels, prediction.classes, palette.colors, palette.class_names)
            write_png(Path(f"{target}_overlay{PNG}"), drawn)
        suffix = TIFF if place else PNG
        if self.color:
            write_flat(Path(f"{target}_color{suffix}"), palette.colorize(prediction.classes), place)
        write_flat(Path(f"{target}_ids{suffix}"), palette.to_ids(prediction.classes), place)


PNG, TIFF = ".png", ".tif"


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels, (H, W) grey or (H, W, 3) RGB; the file is there whole or not at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """
    _write(path, [Image.fromarray(pixels)], format="PNG")


def _write_fast(path: Path, pixels: np.ndarray, _: Georeference) -> None:
    _write(path, [Image.fromarray(pixels)], format="PNG", compress_level=_FAST)


def _write_tiff(path: Path, pixels: np.ndarray, place: Georeference) -> None:
    _write(path, [Image.fromarray(pixels)], format="TIFF", compression="tiff_adobe_deflate", tiffinfo=tiff_tags(place))


def _write_pages(path: Path, shares: np.ndarray, palette: Palette, place: Georeference = NOWHERE) -> None:
    pages = [Image.fromarray(page) for page in shares]
    for page, name in zip(pages, palette.class_names, strict=True):
        # of each page its own, which Pillow takes from here and not from the arguments of save()
        page.encoderinfo = {"tiffinfo": tiff_tags(place, name)}
    first = pages[0].encoderinfo["tiffinfo"]
    _write(path, pages, format="TIFF", compression="tiff_adobe_deflate", tiffinfo=first)


def _write(path: Path, pages: list[Image.Image], **options: Any) -> None:
    more: dict[str, Any] = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    encoded = io.BytesIO()  # Pillow reads what it wrote to find the end of a page.
    pages[0].save(encoded, **options, **more)
    try:
        with storage.write_atomic(path) as file:
            file.write(encoded.getbuffer())
    except OSError as error:
        raise DataError(f"cannot be written ({error}); make room or give --out another folder.", source=path) from None
