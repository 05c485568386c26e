"""Pictures of the validation set inside a page: the image, and masks that lie over it, as data URLs."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdist.apps.report.scored import Example, Scored, extremes
from unetdist.data import pictures
from unetdist.data.ignore_index import IGNORE_INDEX
from unetdist.data.labels import Palette

LARGEST_PX = 768
"""Longer side of a picture: enough for a screen; a report of sixteen stays below some MB."""

GALLERY_PX = 320
"""Longer side of each picture of a gallery."""

WRONG = (226, 32, 44)
"""Red of the pixels that are wrong."""


def cards(scored: Mapping[str, Scored], count: int) -> list[dict[str, Any]]:
    """The `count` worst and best images over all runs, each with what page.html shows of it.

    Args:
        scored: by the name of the run, all on the same images.
        count: of each kind.
    """
    worst, best = extremes(list(scored.values()), count)
    examples = {name: each.examples([*worst, *best]) for name, each in scored.items()}
    kinds = ["worst"] * len(worst) + ["best"] * len(best)
    found = [
        _card(kind, sample_id, scored, {name: examples[name][place] for name in scored})
        for place, (kind, sample_id) in enumerate(zip(kinds, [*worst, *best], strict=True))
    ]
    titles = without_shared_folders([card["key"] for card in found])
    return [{**card, "title": title} for card, title in zip(found, titles, strict=True)]


def gallery(scored: Scored, count: int) -> NDArray[np.uint8]:
    """The `count` best and worst images with ground truth and prediction below one another, (H, W, 3)."""
    worst, best = extremes([scored], count)
    ids = [*best, *reversed(worst)]
    titles = without_shared_folders([scored.keys[sample_id] for sample_id in ids])
    rows = [
        (f"{title}: mIoU {100 * scored.image_mious[sample_id]:.1f} %", each.image, each.mask, each.pred)
        for sample_id, title, each in zip(ids, titles, scored.examples(ids), strict=True)
    ]
    palette = scored.saved.palette
    return pictures.gallery(rows, palette.colors, palette.class_names, largest_px=GALLERY_PX)


def without_shared_folders(keys: Sequence[str]) -> list[str]:
    """Keys of samples without the folders that all of them lie in."""
    parts = [key.split("/") for key in keys]
    levels = zip(*(each[:-1] for each in parts), strict=False)  # as deep as the shallowest
    shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    return ["/".join(each[shared:]) for each in parts]


def _card(
    kind: str, sample_id: int, scored: Mapping[str, Scored], examples: Mapping[str, Example]
) -> dict[str, Any]:
    first = next(iter(scored.values()))
    example = next(iter(examples.values()))
    layers, palette = {}, first.saved.palette
    image, mask = pictures.shrink(LARGEST_PX, example.image, example.mask)
    layers["truth"] = mask_url(mask, palette)
    for number, each in enumerate(examples.values()):
        _, pred = pictures.shrink(LARGEST_PX, each.image, each.pred)
        layers[f"run-{number}"] = mask_url(pred, palette)
        layers[f"wrong-{number}"] = mistakes_url(mask, pred)
    return {
        "kind": kind,
        "key": first.keys[sample_id],
        "width": image.shape[1],
        "height": image.shape[0],
        "image": image_url(image),
        "layers": layers,
        "mious": {name: float(each.image_mious[sample_id]) for name, each in scored.items()},
        "mistake": worst_mistake(first.per_image[sample_id], palette.class_names),
    }


def worst_mistake(confusion: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """The largest cell beside the diagonal in words; empty where all is right."""
    wrong = confusion - np.diag(np.diag(confusion))
    row, column = divmod(int(wrong.argmax()), len(class_names))
    if not wrong[row, column]:
        return ""
    share = wrong[row, column] / confusion.sum()
    return f"{class_names[row]} taken for {class_names[column]}, {100 * share:.0f} % of the pixels"


def image_url(image: NDArray[np.uint8]) -> str:
    """RGB (H, W, 3) as a JPEG."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=88, subsampling=0, optimize=True)
    return _url("jpeg", data)


def mask_url(mask: NDArray[np.uint8], palette: Palette) -> str:
    """Class indices (H, W) as a PNG in class colours, transparent where ignored."""
    table = np.zeros((256, 3), np.uint8)
    table[: palette.num_classes] = palette.colors
    return _indexed(mask, table, transparent=IGNORE_INDEX)


def mistakes_url(mask: NDArray[np.uint8], pred: NDArray[np.uint8]) -> str:
    """A PNG that is red where the prediction is wrong and transparent elsewhere."""
    wrong = ((mask != pred) & (mask != IGNORE_INDEX)).astype(np.uint8)
    return _indexed(wrong, np.array([(0, 0, 0), WRONG], np.uint8), transparent=0)


def _indexed(indices: NDArray[np.uint8], table: NDArray[np.uint8], transparent: int) -> str:
    picture = Image.fromarray(np.ascontiguousarray(indices))
    picture.putpalette(table.tobytes())
    data = io.BytesIO()
    picture.save(data, "PNG", transparency=transparent, optimize=True)
    return _url("png", data)


def _url(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
