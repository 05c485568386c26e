"""Results as a table for people and as JSON for the record."""

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.contenders import OURS
from tests.benchmarks.data import Result
from tests.benchmarks.rounds import Spread, spread


def to_mapping(result: Result) -> dict[str, Any]:
    """Everything that was measured, the raw rounds too."""
    measured = result.measured
    return {
        "case": str(result.case),
        "crop": result.case.crop,
        "num_samples": result.num_samples,
        "rows": [_row(result, name) for name in result.titles],
        "split_us_per_sample": result.split,
        "workers": workers_rows(result),
        "handover_ms": {name: asdict(spread(times)) for name, times in (result.handover or {}).items()}
        or None,
        "raw": {
            "rounds": measured.rounds,
            "workers": result.workers.rounds if result.workers else None,
            "handover_ms": result.handover,
        },
    }


def _row(result: Result, name: str) -> dict[str, Any]:
    measured = result.measured
    row: dict[str, Any] = {
        "name": name,
        "title": result.titles[name],
        "versions": result.versions.get(name),
        "void": measured.void.get(name),
    }
    if is_measured(result, name):
        row["samples_per_s"] = asdict(spread(measured.rates(name)))
        if is_measured(result, OURS.name):
            row["ours_is_faster_by"] = asdict(measured.ratio(OURS.name, name))
    return row


def is_measured(result: Result, name: str) -> bool:
    """There is a number for this contender."""
    return name not in result.measured.void and bool(result.measured.rounds)


def workers_rows(result: Result) -> list[dict[str, Any]] | None:
    """Samples/s by number of workers, and each core's share of what one core alone does."""
    if result.workers is None:
        return None
    one = "1 core"
    rows = []
    for name in result.workers.rounds[0]:
        cores = 1 if name == one else int(name.split()[0])
        ratio = result.workers.ratio(name, one)
        rows.append(
            {
                "workers": 0 if name == one else cores,
                "samples_per_s": asdict(spread(result.workers.rates(name))),
                "of_one_core_per_core": asdict(Spread(*(value / cores for value in asdict(ratio).values()))),
            }
        )
    return rows


def tables(result: Result) -> RenderableType:
    """For the terminal: the contenders, then what else was asked for."""
    case = result.case
    title = (
        f"{case.width}x{case.height}, crop {case.crop}: samples/s on one core, and how much faster ours is"
    )
    table = Table("", title=title, title_justify="left")
    for heading in ("samples/s", "ours / theirs", "quartiles"):
        table.add_column(heading, justify="right")
    for row in to_mapping(result)["rows"]:
        if row["void"] is not None:
            table.add_row(escape(row["title"]), "void", "", "", style="dim")
            continue
        rate, ratio = row["samples_per_s"], row.get("ours_is_faster_by")
        cells = ("", "") if ratio is None or row["name"] == OURS.name else _cells(ratio)
        table.add_row(escape(row["title"]), f"{rate['median']:.0f}", *cells)
    parts: list[RenderableType] = [table]
    parts += [
        f"  void: {escape(result.titles[name])}: {escape(why)}" for name, why in result.measured.void.items()
    ]
    if result.split:
        parts.append(_split_table(result.split))
    if (rows := workers_rows(result)) is not None:
        parts.append(_workers_table(rows))
    if result.handover:
        parts.append(_handover_table(result.handover))
    return Group(*parts)


def _cells(ratio: dict[str, float]) -> tuple[str, str]:
    return f"{ratio['median']:.2f}", f"{ratio['low']:.2f} .. {ratio['high']:.2f}"


def _split_table(split: dict[str, float]) -> Table:
    table = Table(title="our path, microseconds per sample", title_justify="left")
    for part in (*split, "all"):
        table.add_column(part, justify="right")
    table.add_row(*(f"{value:.0f}" for value in (*split.values(), sum(split.values()))))
    return table


def _workers_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="our path with workers, on all cores", title_justify="left")
    for heading in ("workers", "samples/s", "per core, of one core alone", "quartiles"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = _cells(row["of_one_core_per_core"])
        table.add_row(str(row["workers"] or "none"), f"{row['samples_per_s']['median']:.0f}", *cells)
    return table


def _handover_table(times: dict[str, list[float]]) -> Table:
    table = Table(title="from a worker to the trainer, ms per batch of 512x512", title_justify="left")
    for heading in ("", "median", "quartiles"):
        table.add_column(heading, justify="right")
    for name, values in times.items():
        table.add_row(name.replace("_", " "), *_cells(asdict(spread(values))))
    return table
