"""The image of a sample as a shard holds it: the source's own where anyone decodes it, else an 8-bit PNG."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from unetdist.data.decode import CHANNEL_MODES, decode_image, reason_of
from unetdist.data.ingest.restart import add_restart_markers, best_interval
from unetdist.data.orientation import orientation_of, shown_size, upright
from unetdist.errors import DataError

Pixels = npt.NDArray[np.uint8]
ImageFormat = Literal["png", "jpg"]

JPEG_QUALITY = 95
KEPT_MODES = {"JPEG": ("L", "RGB"), "MPO": ("L", "RGB"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}
"""What every decoder reads alike. MPO is the JPEG of phones that holds further pictures behind the first."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class Picture:
    """An image ready for a shard."""

    data: bytes
    extension: str
    """Without dot: jpg or png."""
    pixels: Pixels
    """(H, W, 3) RGB, as the loader will decode it."""
    channels: int
    """1 grey, 3 RGB, 4 RGBA."""
    is_kept: bool
    """Bytes or, where restart markers were added, the coefficients are the source's own, and so are the pixels."""


def store_image(
    data: bytes,
    mask_size: tuple[int, int],
    *,
    resize: tuple[int, int] | None = None,
    image_format: ImageFormat | None = None,
    image_range: tuple[float, float] | None = None,
    seekable: bool = True,
) -> Picture:
    """The image of a mask of `mask_size` (height, width).

    Args:
        data: An encoded image of any kind that PIL reads.
        mask_size: Decides whether an EXIF orientation is to be obeyed: where the mask fits the image as it is
            shown, the image is stored upright, for decoders disagree about EXIF.
        resize: (width, height), by area.
        image_format: Re-encode what is of another format; None: only what has to be.
        image_range: Values of more than 8 bits that become 0 and 255; None: 0 and 65535 for 16-bit integers.
        seekable: Give JPEGs restart markers, without loss, so that a crop is decoded from its own part of the data.

    Raises:
        DataError: The image is unreadable or cut short, holds several frames, has float or 32-bit pixels and
            no `image_range` is given, or is not of the mask's size.
    """
    image = _open(data)
    raw = (image.height, image.width)
    if _is_kept(image, data, image_format) and not resize and _stays(image, mask_size):
        pixels = decode_image(data, 3)
        kept = _with_restart_markers(data, pixels) if seekable else data
        return Picture(kept, EXTENSIONS[str(image.format)], pixels, _channels(image.mode), True)
    stored = _eight_bit(image, data, image_range)
    orientation = orientation_of(image)
    if orientation != 1 and mask_size == shown_size(raw, orientation):
        stored = upright(stored, orientation)
    if stored.shape[:2] != mask_size:
        raise DataError(
            f"image is {stored.shape[1]}x{stored.shape[0]}, mask is {mask_size[1]}x{mask_size[0]} "
            "(width x height); export both at one size."
        )
    if resize:
        stored = cv2.resize(stored, resize, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        stored = stored.reshape(resize[1], resize[0], -1)
    extension = image_format or "png"
    encoded = encode(stored, extension, seekable=seekable)
    return Picture(encoded, extension, decode_image(encoded, 3), stored.shape[2], False)


def channels_of(data: bytes) -> int:
    """Channels of an encoded image: 1 grey, 3 RGB, 4 RGBA."""
    return _channels(_open(data).mode)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # PIL's plug-ins raise what they like
        raise DataError(f"image cannot be read ({reason_of(error)}); replace the file.") from None
    if frames > 1 and image.format != "MPO":
        raise DataError(f"image holds {frames} frames or pages; save each as a file of its own.")
    return image


def _is_kept(image: Image.Image, data: bytes, wanted: ImageFormat | None) -> bool:
    kind = str(image.format)
    if image.mode not in KEPT_MODES.get(kind, ()) or (wanted and EXTENSIONS[kind] != wanted):
        return False
    if kind == "PNG":
        return data[24] <= 8 and "transparency" not in image.info
    # A progressive JPEG decodes 2.7 times slower: who asks for jpg gets a baseline one.
    return not (wanted and image.info.get("progressive"))


def _stays(image: Image.Image, mask_size: tuple[int, int]) -> bool:
    orientation = orientation_of(image)
    raw = (image.height, image.width)
    return mask_size == raw and (orientation == 1 or mask_size != shown_size(raw, orientation))


def _with_restart_markers(data: bytes, pixels: Pixels) -> bytes:
    """The data as they are where nothing can be added, and should the `pixels` not stay the same."""
    marked = add_restart_markers(data)
    return marked if marked and np.array_equal(decode_image(marked, 3), pixels) else data


def _eight_bit(image: Image.Image, data: bytes, image_range: tuple[float, float] | None) -> Pixels:
    """Pixels of any image as uint8 (H, W, 1|3|4)."""
    deep = _deep_pixels(data) if _has_deep_colors(image, data) else None
    try:
        image.load()
    except Exception as error:  # PIL's plug-ins raise what they like
        raise DataError(f"image cannot be read ({reason_of(error)}); replace the file.") from None
    if (deep is None and image.mode in ("I", "F")) or image.mode.startswith("I;16"):
        deep = np.asarray(image)[..., None]
        if image.format == "PNG" or image.mode.startswith("I;16"):
            deep = deep.astype(np.uint16)
    if deep is not None:
        return _scale(deep, image_range)
    if image.mode == "P" and not image.has_transparency_data:
        image = image.convert("RGB")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert(CHANNEL_MODES[_channels(image.mode)]), np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)


def _channels(mode: str) -> int:
    """Of the image that is to be trained on: 1 grey (alpha of grey is dropped), 3 RGB, 4 RGBA."""
    return {"1": 1, "L": 1, "LA": 1, "RGBA": 4}.get(mode, 3)


def _has_deep_colors(image: Image.Image, data: bytes) -> bool:
    """More than one channel of more than 8 bits, of which PIL would keep 8."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] != 0
    bits: Any = getattr(image, "tag_v2", {}).get(258, (8,))
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8


def _deep_pixels(data: bytes) -> npt.NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError("image of more than 8 bits cannot be read; save it as PNG.")
    conversion = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, conversion[pixels.shape[2]])


def _scale(deep: npt.NDArray[Any], image_range: tuple[float, float] | None) -> Pixels:
    if image_range is None and deep.dtype != np.uint16:
        raise DataError(
            f"image has {deep.dtype} pixels of {deep.min():g} to {deep.max():g}; say which values are black "
            "and white with --image-range LOW HIGH."
        )
    low, high = image_range or (0.0, 65535.0)
    scaled = np.rint(np.clip((deep.astype(np.float64) - low) * (255.0 / (high - low)), 0.0, 255.0))
    return scaled.astype(np.uint8).reshape(*deep.shape[:2], -1)


def encode(pixels: Pixels, image_format: ImageFormat, *, seekable: bool = True) -> bytes:
    """Pixels (H, W, 1|3|4) as PNG, or as JPEG without alpha, with restart markers where it is to be `seekable`."""
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image_format == "jpg":
        image = image.convert("RGB") if image.mode == "RGBA" else image
        # 4:4:4, for halved colour would blur what the mask separates.
        interval = best_interval(-(-image.width // 8), 8) if seekable else 0
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, restart_marker_blocks=interval)
    else:
        image.save(file, "PNG")
    return file.getvalue()
