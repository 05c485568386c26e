"""The files that are written for a prediction."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from unetdist.data import drawing
from unetdist.data.labels import Palette
from unetdist.errors import DataError
from unetdist.predict.image import Georeference, LoadedImage, Prediction
from unetdist.storage import files as storage

PNG, TIFF = ".png", ".tif"

# Level of zlib that takes a quarter of the usual time for images of few classes.
_FAST = 1

# TIFF tag for the name of a page.
_DESCRIPTION = 270


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Which files are written for an image NAME, in addition to NAME_ids.png."""

    color: bool = False
    """NAME_color.png: the classes in the colours of Labels.txt, at the image's size."""

    overlay: bool = False
    """NAME_overlay.png: the image under its classes' colours, with a legend."""

    probabilities: bool = False
    """NAME_probabilities.tif: one 8-bit page per class, in units of 1 / 255, with the class name as description."""

    def are_there(self, target: Path) -> bool:
        """Whether all files of an image exist."""

        def exists(end: str) -> bool:
            return Path(f"{target}{end}").exists()

        # Ids and colours are TIFFs for a GeoTIFF, and whether it is one is unknown until the image is read.
        return (
            any(exists(f"_ids{end}") and (not self.color or exists(f"_color{end}")) for end in (PNG, TIFF))
            and (not self.overlay or exists(f"_overlay{PNG}"))
            and (not self.probabilities or exists(f"_probabilities{TIFF}"))
        )

    def write(self, target: Path, image: LoadedImage, prediction: Prediction, palette: Palette) -> None:
        """Write the files, each whole or not at all. Ids and colours of a GeoTIFF become GeoTIFFs.

        Raises:
            DataError: the disk is full, or the folder is not writable.
        """
        # The ids come last, so an image that has them has the other files too.
        place = image.georeference
        suffix = TIFF if place else PNG
        if prediction.probabilities is not None:
            _write_pages(Path(f"{target}_probabilities{TIFF}"), prediction.probabilities, palette, place)
        if self.overlay:
            drawn = drawing.overlay(image.pixels, prediction.classes, palette.colors, palette.class_names)
            _write(Path(f"{target}_overlay{PNG}"), [Image.fromarray(drawn)], format="PNG")
        if self.color:
            _write_flat(Path(f"{target}_color{suffix}"), palette.colorize(prediction.classes), place)
        _write_flat(Path(f"{target}_ids{suffix}"), palette.to_ids(prediction.classes), place)


def _write_flat(path: Path, pixels: np.ndarray, place: Georeference) -> None:
    image = Image.fromarray(pixels)
    if place:
        _write(path, [image], format="TIFF", compression="tiff_adobe_deflate", tiffinfo=_tiff_tags(place))
    else:
        _write(path, [image], format="PNG", compress_level=_FAST)


def _write_pages(path: Path, probabilities: np.ndarray, palette: Palette, place: Georeference) -> None:
    pages = [Image.fromarray(page) for page in probabilities]
    for page, name in zip(pages, palette.class_names, strict=True):
        # Pillow takes the tags of each page from here, and not from the arguments of save().
        page.encoderinfo = {"tiffinfo": _tiff_tags(place, name)}
    first = pages[0].encoderinfo["tiffinfo"]
    _write(path, pages, format="TIFF", compression="tiff_adobe_deflate", tiffinfo=first)


def _tiff_tags(place: Georeference, description: str = "") -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in place:
        tags.tagtype[tag] = kind
        tags[tag] = value
    if description:
        tags[_DESCRIPTION] = description
    return tags


def _write(path: Path, pages: list[Image.Image], **options: Any) -> None:
    more: dict[str, Any] = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
    # In memory first, because Pillow reads what it wrote to find the end of a page.
    encoded = io.BytesIO()
    pages[0].save(encoded, **options, **more)
    try:
        with storage.write_atomic(path) as file:
            file.write(encoded.getbuffer())
    except OSError as error:
        raise DataError(f"cannot be written ({error}); make room or give --out another folder.", source=path) from None
