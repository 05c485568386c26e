"""The model card of a saved model: what the Hub shows of it, and what a reader of its folder wants to know."""

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unetdist.errors import one_line
from unetdist.model.saved_model import read_config

CARD_FILE = "README.md"
EXAMPLE_FILE = "example.png"

USE = """```python
from unetdist import UNet

model = UNet.from_pretrained({source})
classes = model.predict("street.jpg")  # (H, W) indices into model.classes
```"""


def card_of(folder: str | os.PathLike[str], *, license: str | None = None, repo_id: str | None = None) -> str:
    """The card of a folder that `save_model` wrote, as Markdown with the fields that the Hub reads on top.

    Args:
        folder: also looked through for an example picture, `EXAMPLE_FILE`.
        license: as the Hub names it, such as `apache-2.0`; None: the field is left out.
        repo_id: the repository that it will be; None: how to load it from a folder.
    """
    from huggingface_hub import ModelCardData

    config = read_config(folder)
    fields = ModelCardData(
        license=license,
        library_name="unetdist",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "unet"],
    )
    parts = [
        f"---\n{fields.to_yaml()}\n---\n\n# {_literal(str(repo_id or config.get('run') or 'U-Net').split('/')[-1])}",
        "A U-Net for semantic segmentation: from an image to the class of each pixel.",
        USE.format(source=json.dumps(repo_id or "FOLDER")),
    ]
    if (Path(folder) / EXAMPLE_FILE).exists():
        parts.append(f"![An image under the classes that were predicted]({EXAMPLE_FILE})")
    parts += ["## Classes", *_scores(config), "\n".join(_classes(config)), "## Network", "\n".join(_network(config))]
    return "\n\n".join(parts) + "\n"


def _scores(config: Mapping[str, Any]) -> Iterator[str]:
    report = config.get("report")
    if not report or report["miou"] is None:
        return
    interval = ""
    if report["miou_interval_95"] is not None:
        low, high = map(_percent, report["miou_interval_95"])
        interval = f" (95 % bootstrap interval over images {low} to {high} %)"
    yield (
        f"mIoU **{_percent(report['miou'])} %**{interval}, pixel accuracy {_percent(report['pixel_accuracy'])} % on "
        f"the {report['num_samples']} images of the validation set, after {config.get('step')} steps."
    )


def _classes(config: Mapping[str, Any]) -> Iterator[str]:
    scores = (config.get("report") or {}).get("classes", {})
    yield "| index | id | class | colour | IoU % |"
    yield "|---|---|---|---|---|"
    for record in config["classes"]:
        if record["index"] is not None:
            name, color = record["name"], ", ".join(map(str, record["color"]))
            iou = scores.get(name, {}).get("iou")
            cells = (record["index"], record["id"], _literal(name), color, "" if iou is None else _percent(iou))
            yield f"| {' | '.join(map(str, cells))} |"


def _network(config: Mapping[str, Any]) -> Iterator[str]:
    resize = config["resize"]
    size = "their own size" if resize is None else f"{resize[0]}x{resize[1]} pixels, to which others are resized"
    yield f"Trained on images at {size}. Values 0 to 255 go in; mean and standard deviation are inside the network."
    yield _values(config.get("image_range"))
    yield f"\n```json\n{json.dumps(config['model'])}\n```"


def _values(image_range: list[float] | None) -> str:
    if image_range is None:
        return "It was trained on images of 8 bits, or which values of deeper ones were black and white is unknown."
    low, high = image_range
    return f"Values {low:.10g} to {high:.10g} of images of more than 8 bits became 0 to 255, as `predict` does it too."


def _literal(name: str) -> str:
    """Escape a name so that Markdown and HTML in it are shown literally."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(one_line(name), quote=False))


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f}"
