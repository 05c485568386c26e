"""The HTML page, laid out by page/page.html. It needs no network and no other file."""

import datetime
import math
from collections.abc import Sequence
from importlib import resources

from unetdist import __version__
from unetdist.apps.report import charts, tables
from unetdist.apps.report.cards import make_cards
from unetdist.apps.report.run import ReportedRun, ScoredRun
from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.errors import ConfigError

NOTHING = "\N{EN DASH}"

# Nobody reads more columns. launch/ablate.py makes a table of many runs.
MAX_RUNS = 8


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
        raise ConfigError(f'{error.name} is not installed; type: pip install -e ".[report]"') from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unetdist.apps.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "hex": charts.to_hex}
    alike = _on_the_same_images(runs)
    results = tables.results(runs)
    page = environment.get_template("page.html").render(
        runs=[
            {"name": run.name, "colors": charts.run_color(index), "dashes": charts.run_dash(index)[1]}
            for index, run in enumerate(runs)
        ],
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
        notes=[*notes, *_disagreements(runs)],
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
    keys = next((each.keys for each in scored.values()), ())
    palettes = [each.saved.palette.to_records() for each in scored.values()]
    return {
        name: each
        for (name, each), palette in zip(scored.items(), palettes, strict=True)
        if each.keys == keys and palette == palettes[0]
    }


def _disagreements(runs: Sequence[ReportedRun]) -> list[str]:
    """Notes on runs whose new score differs from the saved one (another precision, data set or machine)."""
    return [
        f"{run.name}: the confusion matrix differs from the one saved during training; the new one is shown."
        for run in runs
        if run.saved_report and run.report["confusion"] != run.saved_report["confusion"]
    ]


def _file(name: str) -> str:
    return resources.files("unetdist.apps.report").joinpath("page", name).read_text(encoding="utf-8")
