"""The HTML page, laid out by page/page.html, with images as data URLs. It needs no network and no other file."""

import base64
import datetime
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdist import __version__
from unetdist.cli import settings
from unetdist.cli.commands import extra
from unetdist.cli.credentials import mask
from unetdist.commands.report import charts, tables
from unetdist.commands.report.run import ReportedRun, ScoredRun, extremes
from unetdist.data import drawing
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.errors import ConfigError

NOTHING = "\N{EN DASH}"

# Longer side of an image: enough for a screen, and sixteen of them stay below a few MB.
MAX_PX = 768

# Red, for wrong pixels.
WRONG_COLOR = (226, 32, 44)


def render(runs: Sequence[ReportedRun], *, num_pictures: int, notes: Sequence[str] = ()) -> str:
    """Return the HTML of a report.

    Args:
        runs: in the order of their columns; those that could be scored have `scored`.
        num_pictures: how many of the worst and of the best images to show.
        notes: sentences on what is missing, and why.

    Raises:
        ConfigError: plotly or jinja2 is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; type: {extra('report')}") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetdist.commands.report", "page"),
        autoescape=True,
        # A misspelt name must fail in the tests, not leave a gap in the page.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "hex": charts.to_hex}
    # Another precision, machine or version of torch changes some pixels; other shards change many.
    rescored = [
        f"{run.name}: the confusion matrix differs from the one saved during training; the new one is shown."
        for run in runs
        if run.saved_report and run.report["confusion"] != run.saved_report["confusion"]
    ]
    alike = _on_the_same_images(runs)
    results = tables.results(runs)
    page = environment.get_template("page.html").render(
        runs=[{"name": run.name, "style": style} for run, style in zip(runs, charts.RUN_STYLES, strict=False)],
        labels=next((run.labels for run in runs if run.labels), []),
        results=results,
        scored_results=[row for row in results if row["miou"] is not None],
        classes=tables.classes(runs),
        class_runs=[{"name": run.name, "number": index} for index, run in enumerate(runs) if run.report],
        confusions=tables.confusions(runs),
        changes=tables.changes(runs),
        settings=[{"name": run.name, "yaml": settings.to_yaml(run.settings)} for run in runs],
        course=tables.course(runs),
        curves=charts.curves(runs),
        class_curves=charts.class_curves(runs),
        cards=make_cards(alike, num_pictures) if alike and num_pictures else [],
        card_runs=list(alike),
        data=sorted({mask(run.scored.data) for run in runs if run.scored}),
        notes=[*notes, *rescored],
        style=_file("style.css"),
        script=_file("script.js"),
        plotly=get_plotlyjs(),
        version=__version__,
        date=datetime.date.today().isoformat(),
    )
    return str(page)


def percent(ratio: float | None, digits: int = 1) -> str:
    """Format 0.346 as 34.6, and None as a dash."""
    return NOTHING if ratio is None else f"{100 * ratio:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    """Format 1330 as 1,330, and None as a dash."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Format as h:mm:ss, and None as a dash."""
    return NOTHING if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def _on_the_same_images(runs: Sequence[ReportedRun]) -> dict[str, ScoredRun]:
    """The first scored run, and the others on the same images and classes, by name."""
    scored = {run.name: run.scored for run in runs if run.scored}
    contents = [(each.keys, each.saved.palette.to_records()) for each in scored.values()]
    return {name: each for (name, each), own in zip(scored.items(), contents, strict=True) if own == contents[0]}


def make_cards(runs: Mapping[str, ScoredRun], count: int) -> list[dict[str, Any]]:
    """The `count` worst and the `count` best images over all runs, as page.html shows them.

    `runs` are by name, all scored on the same images.
    """
    scored = list(runs.values())
    first, palette = scored[0], scored[0].saved.palette
    worst, best = extremes(scored, count)
    ids = [*worst, *best]
    predicted = zip(*(each.predict(ids) for each in scored), strict=True)
    return [
        {
            "kind": "worst" if place < len(worst) else "best",
            "key": first.keys[sample_id],
            "mious": {name: float(each.image_mious[sample_id]) for name, each in runs.items()},
            "mistakes": tables.largest_mix_ups(first.per_image[sample_id], palette.class_names, 1),
            **_layers(images, palette),
        }
        for place, (sample_id, images) in enumerate(zip(ids, predicted, strict=True))
    ]


def _layers(predicted: Sequence[tuple[NDArray[np.uint8], ...]], palette: Palette) -> dict[str, Any]:
    """The image and what can be laid over it, from the (image, mask, pred) of each run."""
    colors = palette.colors.tolist()
    image, truth = drawing.shrink(MAX_PX, *predicted[0][:2])
    layers = {"truth": layer_url(truth, colors, transparent=IGNORE_INDEX)}
    for index, (original, _, full_pred) in enumerate(predicted):
        _, pred = drawing.shrink(MAX_PX, original, full_pred)
        wrong = ((truth != pred) & (truth != IGNORE_INDEX)).astype(np.uint8)
        layers[f"run-{index}"] = layer_url(pred, colors, transparent=IGNORE_INDEX)
        layers[f"wrong-{index}"] = layer_url(wrong, [(0, 0, 0), WRONG_COLOR], transparent=0)
    photo = _url(Image.fromarray(image), "JPEG", quality=88, subsampling=0)
    return {"width": image.shape[1], "height": image.shape[0], "image": photo, "layers": layers}


def layer_url(indices: NDArray[np.uint8], colors: Sequence[Sequence[int]], *, transparent: int) -> str:
    """Class indices (H, W) in `colors` as a PNG that shows the image where they are `transparent`."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    picture = Image.fromarray(np.ascontiguousarray(indices))
    picture.putpalette(table.tobytes())
    return _url(picture, "PNG", transparency=transparent)


def _url(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _file(name: str) -> str:
    return resources.files("unetdist.commands.report").joinpath("page", name).read_text(encoding="utf-8")
