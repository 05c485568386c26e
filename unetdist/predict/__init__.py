"""Puts a trained model to work.

In: a saved model and images, which may be files, folders, lists, URLs, shards or videos. Out: class ids, colours,
overlays and probabilities as files. `hub` shares a model and predicts from Python; `export` writes it for other
programs.
"""

from unetdist.predict.image import predict_image, read_picture
from unetdist.predict.outputs import Outputs
from unetdist.predict.pipeline import Failure, predict_files

__all__ = ["Failure", "Outputs", "predict_files", "predict_image", "read_picture"]
