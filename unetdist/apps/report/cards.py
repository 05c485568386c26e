"""Images of the validation set inside the page, with masks laid over them, as data URLs."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdist.apps.report.run import ScoredRun, extremes
from unetdist.apps.report.tables import largest_mix_ups
from unetdist.data import drawing
from unetdist.data.labels import IGNORE_INDEX, Palette

# Longer side of an image: enough for a screen, and sixteen of them stay below a few MB.
MAX_PX = 768
GALLERY_PX = 320

# Red, for wrong pixels.
WRONG_COLOR = (226, 32, 44)


def make_cards(runs: Mapping[str, ScoredRun], count: int) -> list[dict[str, Any]]:
    """The `count` worst and the `count` best images over all runs, as page.html shows them.

    `runs` are by name, all scored on the same images.
    """
    scored = list(runs.values())
    first, palette = scored[0], scored[0].saved.palette
    worst, best = extremes(scored, count)
    ids = [*worst, *best]
    titles = without_shared_folders([first.keys[sample_id] for sample_id in ids])
    predicted = zip(*(each.predict(ids) for each in scored), strict=True)
    return [
        {
            "kind": "worst" if place < len(worst) else "best",
            "key": first.keys[sample_id],
            "title": title,
            "mious": {name: float(each.image_mious[sample_id]) for name, each in runs.items()},
            "mistake": worst_mistake(first.per_image[sample_id], palette.class_names),
            **_layers(images, palette),
        }
        for place, (sample_id, title, images) in enumerate(zip(ids, titles, predicted, strict=True))
    ]


def draw_gallery(scored: ScoredRun, count: int) -> NDArray[np.uint8]:
    """The `count` best and worst images in one picture (H, W, 3), each above its ground truth and prediction."""
    worst, best = extremes([scored], count)
    ids = [*best, *reversed(worst)]
    titles = without_shared_folders([scored.keys[sample_id] for sample_id in ids])
    rows = [
        (f"{title}: mIoU {100 * scored.image_mious[sample_id]:.1f} %", image, mask, pred)
        for sample_id, title, (image, mask, pred) in zip(ids, titles, scored.predict(ids), strict=True)
    ]
    palette = scored.saved.palette
    return drawing.gallery(rows, palette.colors, palette.class_names, largest_px=GALLERY_PX)


def without_shared_folders(keys: Sequence[str]) -> list[str]:
    """Sample keys without the folders that all of them share."""
    parts = [key.split("/") for key in keys]
    levels = zip(*(each[:-1] for each in parts), strict=False)  # as deep as the shallowest
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    return ["/".join(each[shared:]) for each in parts]


def worst_mistake(confusion: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """The largest off-diagonal cell in words; empty if every pixel is right."""
    return "".join(
        f"{each['target']} taken for {each['prediction']}, {100 * each['of_all']:.0f} % of the pixels"
        for each in largest_mix_ups(confusion, class_names, 1)
    )


def mask_url(mask: NDArray[np.uint8], palette: Palette) -> str:
    """Class indices (H, W) as a PNG in class colours, transparent where ignored."""
    table = np.zeros((256, 3), np.uint8)
    table[: palette.num_classes] = palette.colors
    return _indexed_url(mask, table, transparent=IGNORE_INDEX)


def mistakes_url(mask: NDArray[np.uint8], pred: NDArray[np.uint8]) -> str:
    """A PNG that is red where the prediction is wrong and transparent elsewhere."""
    wrong = ((mask != pred) & (mask != IGNORE_INDEX)).astype(np.uint8)
    return _indexed_url(wrong, np.array([(0, 0, 0), WRONG_COLOR], np.uint8), transparent=0)


def _layers(predicted: Sequence[tuple[NDArray[np.uint8], ...]], palette: Palette) -> dict[str, Any]:
    """The image and what can be laid over it, from the (image, mask, pred) of each run."""
    image, mask = drawing.shrink(MAX_PX, *predicted[0][:2])
    layers = {"truth": mask_url(mask, palette)}
    for index, (original, _, full_pred) in enumerate(predicted):
        _, pred = drawing.shrink(MAX_PX, original, full_pred)
        layers[f"run-{index}"] = mask_url(pred, palette)
        layers[f"wrong-{index}"] = mistakes_url(mask, pred)
    photo = _url(Image.fromarray(image), "JPEG", quality=88, subsampling=0)
    return {"width": image.shape[1], "height": image.shape[0], "image": photo, "layers": layers}


def _indexed_url(indices: NDArray[np.uint8], table: NDArray[np.uint8], transparent: int) -> str:
    picture = Image.fromarray(np.ascontiguousarray(indices))
    picture.putpalette(table.tobytes())
    return _url(picture, "PNG", transparency=transparent)


def _url(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
