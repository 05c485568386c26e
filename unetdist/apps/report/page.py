"""The page: what was found, laid out by page/page.html. It needs no network and no other file."""

import datetime
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from unetdist import __version__
from unetdist.apps.report import charts, colors, images, tables
from unetdist.apps.report.run import Run
from unetdist.apps.report.scored import Scored
from unetdist.cli import settings
from unetdist.cli.credentials import mask
from unetdist.errors import ConfigError

NOTHING = "\N{EN DASH}"

MOST_RUNS = 8
"""Beside each other; more would be read by nobody. launch/ablate.py has a table for them."""


def render(
    runs: Sequence[Run],
    scored: Mapping[str, Scored],
    *,
    num_pictures: int,
    notes: Sequence[str] = (),
) -> str:
    """The HTML of a report.

    Args:
        runs: in the order of their columns.
        scored: by name, the runs that could be scored anew.
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
    environment.filters |= {
        "percent": percent,
        "number": number,
        "duration": duration,
        "setting": setting,
        "hex": colors.to_hex,
    }
    alike = _on_the_same_images(scored)
    results = tables.results(runs, scored)
    page = environment.get_template("page.html").render(
        runs=[
            {"name": run.name, "colors": colors.of_run(index), "dashes": colors.dash_of_run(index)[1]}
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
        settings=[{"name": run.name, "yaml": _yaml(run)} for run in runs],
        course=tables.course(runs),
        curves=charts.curves(runs),
        class_curves=charts.class_curves(runs),
        cards=images.cards(alike, num_pictures) if alike and num_pictures else [],
        card_runs=list(alike),
        data=sorted({mask(each.data) for each in scored.values()}),
        notes=[*notes, *_disagreements(runs, scored)],
        style=_file("style.css"),
        script=_file("script.js"),
        plotly=get_plotlyjs(),
        version=__version__,
        date=datetime.date.today().isoformat(),
    )
    return str(page)


def percent(ratio: float | None, digits: int = 1) -> str:
    """34.6 of 0.346; a dash of None."""
    return NOTHING if ratio is None else f"{100 * ratio:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    """1,330; a dash of None."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 05 min; a dash of None."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def setting(value: Any) -> str:
    """As a settings file would have it."""
    if isinstance(value, list):
        return f"[{', '.join(setting(each) for each in value)}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _on_the_same_images(scored: Mapping[str, Scored]) -> dict[str, Scored]:
    """The first run and those that were scored on its images."""
    first = next(iter(scored.values()), None)
    return {
        name: each
        for name, each in scored.items()
        if first is not None
        and each.keys == first.keys
        and each.saved.palette.to_records() == first.saved.palette.to_records()
    }


def _disagreements(runs: Sequence[Run], scored: Mapping[str, Scored]) -> list[str]:
    """Where counting anew gave something else: another precision, another data set, other kernels."""
    return [
        f"{run.name}: scored anew, its confusion matrix differs from the one that was noted as it was trained; the new "
        "one is shown."
        for run in runs
        if run.name in scored
        and run.confusion is not None
        and (run.confusion != scored[run.name].confusion).any()
    ]


def _yaml(run: Run) -> str:
    return settings.to_yaml(run.settings)


def _file(name: str) -> str:
    return resources.files("unetdist.apps.report").joinpath("page", name).read_text(encoding="utf-8")
