"""Class ids, colours, overlays and probabilities of pictures, one or millions."""

from unetdist.predict.image import find_device, predict_image, read_picture
from unetdist.predict.outputs import Outputs, write_png
from unetdist.predict.sources import find_jobs, open_source
from unetdist.predict.volume import Failure, predict_files

__all__ = [
    "Failure",
    "Outputs",
    "find_device",
    "find_jobs",
    "open_source",
    "predict_files",
    "predict_image",
    "read_picture",
    "write_png",
]
