"""Training loops as a table for people, as JSON for the record, as bars."""

from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.chart import Bar, draw_bars
from tests.benchmarks.loops.everybody import OURS, SELVES
from tests.benchmarks.loops.trace import PARTS
from tests.benchmarks.rounds import spread
from tests.benchmarks.train import TrainCase, TrainResult
from unetdist.model.limit import Peaks, flops_of, layers_of, seconds_of
from unetdist.model.unet import UNetConfig

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Limit:
    """What the device could do for a case."""

    flops: int
    """Of training on one image."""
    images_per_s: float
    """Were everything fused; see `unetdist.model.limit`."""
    peaks: Peaks

    @classmethod
    def of(cls, case: TrainCase, num_classes: int, precision: str, peaks: Peaks) -> "Limit":
        """By the peaks that were measured in the same run."""
        layers = layers_of(UNetConfig(preset=case.preset), num_classes, (case.height, case.width))
        seconds = seconds_of(
            layers, "ideal", batch_size=case.batch_size, peaks=peaks, value_bytes=VALUE_BYTES[precision]
        )
        return cls(flops_of(layers), case.batch_size / seconds, peaks)


def to_mapping(result: TrainResult, limits: dict[str, Limit]) -> dict[str, Any]:
    """Everything that was measured, the raw rounds too; `limits` by precision."""
    return {
        "case": str(result.case),
        "num_classes": result.num_classes,
        "limits": {precision: asdict(limit) for precision, limit in limits.items()},
        "rows": [_row(result, name, limits) for name in result.rows],
        "raw": {"rounds": result.measured.rounds},
    }


def _row(result: TrainResult, name: str, limits: dict[str, Limit]) -> dict[str, Any]:
    row = result.rows[name]
    mapping = {key: None if value != value else value for key, value in asdict(row).items()}  # NaN: not known
    mapping["void"] = result.measured.void.get(name)
    if not is_measured(result, name):
        return mapping
    rate = spread(result.measured.rates(name))
    limit = limits[row.precision]
    mapping |= {
        "images_per_s": asdict(rate),
        "flops_utilisation": rate.median * limit.flops / limit.peaks.flops,
        "share_of_limit": rate.median / limit.images_per_s,
    }
    if is_measured(result, result.ours):
        mapping["ours_is_faster_by"] = asdict(result.measured.ratio(result.ours, name))
    return mapping


def is_measured(result: TrainResult, name: str) -> bool:
    """There is a number for this row."""
    return name not in result.measured.void and bool(result.measured.rounds)


def tables(result: TrainResult, limits: dict[str, Limit]) -> RenderableType:
    """For the terminal: speeds, and where the time of a step goes; reasons of void rows below."""
    rows = to_mapping(result, limits)["rows"]
    parts: list[RenderableType] = [_speeds(rows, result), _splits(rows)]
    for precision, limit in limits.items():
        parts.append(
            f"  {precision}: peaks {limit.peaks.flops / 1e12:.3g} TFLOP/s and {limit.peaks.bandwidth / 1e9:.4g} GB/s; "
            f"{limit.flops / 1e9:.1f} GFLOP per image, limit {limit.images_per_s:.0f} images/s"
        )
    parts += [
        f"  void: {escape(result.rows[name].title)} {result.rows[name].precision}: {escape(why)}"
        for name, why in result.measured.void.items()
    ]
    return Group(*parts)


def _speeds(rows: list[dict[str, Any]], result: TrainResult) -> Table:
    table = Table("", "", title=f"{_size(result.case)}: images/s of training", title_justify="left")
    for heading in ("images/s", "quartiles", "ours / theirs", "of limit", "MFU", "first step", "syncs", "GB"):
        table.add_column(heading, justify="right")
    for row in rows:
        title = escape(row["title"])
        if row["void"] is not None or "images_per_s" not in row:
            table.add_row(title, row["precision"], "void", style="dim")
            continue
        rate, ratio = row["images_per_s"], row.get("ours_is_faster_by")
        table.add_row(
            title,
            row["precision"],
            f"{rate['median']:.4g}",
            f"{rate['low']:.4g} .. {rate['high']:.4g}",
            "" if ratio is None or row["name"] == result.ours else f"{ratio['median']:.2f}",
            f"{row['share_of_limit']:.2f}",
            f"{row['flops_utilisation']:.2f}",
            f"{row['first_step_s']:.1f} s",
            "" if row["syncs"] is None else f"{row['syncs']:.1f}",
            f"{row['peak_gb']:.2f}",
        )
    return table


def _splits(rows: list[dict[str, Any]]) -> Table:
    table = Table("", "", title="milliseconds of a step (under the profiler)", title_justify="left")
    for part in PARTS:
        table.add_column(part, justify="right")
    for row in rows:
        if row["split_ms"]:
            cells = (f"{row['split_ms'][part]:.2f}" for part in PARTS)
            table.add_row(escape(row["title"]), row["precision"], *cells)
    return table


def panel(result: TrainResult, limits: dict[str, Limit]) -> Image.Image:
    """Images per second of everybody as bars, and beside it how many times as fast ours is."""
    ours_names = {contender.name for contender in (OURS, *SELVES)}
    bars = []
    for name, row in result.rows.items():
        label = f"{row.title}, {row.precision}"
        if not is_measured(result, name):
            bars.append(Bar(label, None, "void", is_ours=False))
            continue
        rates = spread(result.measured.rates(name))
        note = f"{rates.median:.4g}"
        if name != result.ours and is_measured(result, result.ours):
            note += f"   ours is {result.measured.ratio(result.ours, name).median:.2f} x"
        bars.append(Bar(label, rates, note, is_ours=name.split()[0] in ours_names))
    case = result.case
    limit = limits[result.rows[result.ours].precision].images_per_s
    return draw_bars(f"{_size(case)}: images/s of training (limit {limit:.4g})", bars)


def _size(case: TrainCase) -> str:
    return f"{case.preset} U-Net, {case.width}x{case.height}, batch {case.batch_size}"
