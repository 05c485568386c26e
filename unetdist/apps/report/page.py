"""The HTML page, laid out by page/page.html. It needs no network and no other file."""

import datetime
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from unetdist import __version__
from unetdist.apps.report import charts, tables
from unetdist.apps.report.cards import make_cards
from unetdist.apps.report.run import ReportedRun
from unetdist.apps.report.scored import ScoredRun
from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.errors import ConfigError

NOTHING = "\N{EN DASH}"

# Nobody reads more columns. launch/ablate.py makes a table of many runs.
MAX_RUNS = 8


def render(
    runs: Sequence[ReportedRun], scored: Mapping[str, ScoredRun], *, num_pictures: int, notes: Sequence[str] = ()
) -> str:
    """Return the HTML of a report.

    Args:
        runs: in the order of their columns.
        scored: by name, the runs that could be scored.
        num_pictures: how many of the worst and of the best images to show.
        notes: sentences on what is missing, and why.

    Raises:
        ConfigError: plotly or jinja2 is not installed.
    """
    template, plotly = _template()
    alike = _on_the_same_images(scored)
    results = tables.results(runs, scored)
    dashes = [charts.run_dash(index)[1] for index in range(len(runs))]
    page = template.render(
        runs=[
            {"name": run.name, "colors": charts.run_color(index), "dashes": dashes[index]}
            for index, run in enumerate(runs)
        ],
        labels=next((run.labels for run in runs if run.labels), []),
        results=results,
        scored_results=[row for row in results if row["miou"] is not None],
        classes=tables.classes(runs, scored),
        class_runs=[
            {"name": run.name, "number": index}
            for index, run in enumerate(runs)
            if tables.confusion_of(run, scored) is not None
        ],
        confusions=tables.confusions(runs, scored),
        changes=tables.changes(runs),
        settings=[{"name": run.name, "yaml": settings.to_yaml(run.settings)} for run in runs],
        course=tables.course(runs),
        curves=charts.curves(runs),
        class_curves=charts.class_curves(runs),
        cards=make_cards(alike, num_pictures) if alike and num_pictures else [],
        card_runs=list(alike),
        data=sorted({mask(each.data) for each in scored.values()}),
        notes=[*notes, *_disagreements(runs, scored)],
        style=_file("style.css"),
        script=_file("script.js"),
        plotly=plotly,
        version=__version__,
        date=datetime.date.today().isoformat(),
    )
    return str(page)


def _template() -> tuple[Any, str]:
    """The template of the page, and the source of plotly."""
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
    environment.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "setting": setting,
        "hex": charts.to_hex,
    }
    return environment.get_template("page.html"), get_plotlyjs()


def percent(ratio: float | None, digits: int = 1) -> str:
    """Format 0.346 as 34.6, and None as a dash."""
    return NOTHING if ratio is None else f"{100 * ratio:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    """Format 1330 as 1,330, and None as a dash."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Format as 12 s, 3 min 20 s or 2 h 05 min, and None as a dash."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def setting(value: Any) -> str:
    """Format a value like a settings file."""
    if isinstance(value, list):
        return f"[{', '.join(setting(each) for each in value)}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _on_the_same_images(scored: Mapping[str, ScoredRun]) -> dict[str, ScoredRun]:
    """The first scored run, and the others on the same images and classes."""
    first = next(iter(scored.values()), None)
    return {
        name: each
        for name, each in scored.items()
        if first is not None
        and each.keys == first.keys
        and each.saved.palette.to_records() == first.saved.palette.to_records()
    }


def _disagreements(runs: Sequence[ReportedRun], scored: Mapping[str, ScoredRun]) -> list[str]:
    """Notes on runs whose new score differs from the saved one (another precision, data set or machine)."""
    return [
        f"{run.name}: the confusion matrix differs from the one saved during training; the new one is shown."
        for run in runs
        if run.name in scored and run.confusion is not None and (run.confusion != scored[run.name].confusion).any()
    ]


def _file(name: str) -> str:
    return resources.files("unetdist.apps.report").joinpath("page", name).read_text(encoding="utf-8")
