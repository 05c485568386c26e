"""Where on the earth the pixels of a GeoTIFF lie: the tags that say so, carried over unchanged.

GeoTIFF 1.1 (OGC 19-008r4), section 7: a grid is placed by ModelPixelScale and ModelTiepoint, or by
ModelTransformation; the three GeoKey tags name the coordinate system. They hold for pictures of the same size only.
"""

import io
from typing import Any

from PIL import TiffImagePlugin

from unetdist.data.tiff import is_tiff
from unetdist.errors import DataError

# (tag, type, value) of each tag that there is.
Georeference = tuple[tuple[int, int, Any], ...]

NOWHERE: Georeference = ()

PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264
TAGS = (PIXEL_SCALE, TIEPOINT, TRANSFORMATION, 34735, 34736, 34737)
_DESCRIPTION, _ORIENTATION = 270, 274


def georeference_of(data: bytes) -> Georeference:
    """The tags of a TIFF that has a place; none of other pictures, and of one whose pixels are stored turned.

    What is predicted is turned upright, and the tags speak of the pixels as they are stored.
    """
    if not is_tiff(data):
        return NOWHERE
    # Not by Image.open, which does not know all TIFFs that are read.
    header = data[:16] if b"+" in data[2:4] else data[:8]
    file = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
    except Exception as error:  # Pillow raises what it likes
        raise DataError(f"the tags of the TIFF cannot be read ({error}); save the file again.") from None
    if not any(tag in tags for tag in (TIEPOINT, TRANSFORMATION)) or tags.get(_ORIENTATION, 1) != 1:
        return NOWHERE
    return tuple((tag, tags.tagtype[tag], tags[tag]) for tag in TAGS if tag in tags)


def tiff_tags(georeference: Georeference, description: str = "") -> TiffImagePlugin.ImageFileDirectory_v2:
    """What Pillow's `save` takes as `tiffinfo`."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in georeference:
        tags.tagtype[tag] = kind
        tags[tag] = value
    if description:
        tags[_DESCRIPTION] = description
    return tags
