"""Classes, sizes and shards of a data set, from its manifest: as numbers, tables and a drawing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from unetdist.data.drawing import paint
from unetdist.data.labels import IGNORE_INDEX, Palette
from unetdist.data.manifest import Manifest
from unetdist.sharding.describe import CHANNEL_NAMES

_PAPER, _INK, _FAINT, _FRAME, _BAR = ((255, 255, 255), (25, 25, 25), (110, 110, 110), (140, 140, 140), (90, 120, 160))
_FONT_PX, _LINE_PX, _BAR_PX, _LONGEST_NAME = 15, 26, 420, 32


def summarize(manifest: Manifest) -> dict[str, Any]:
    """The numbers as JSON types; shares are fractions 0..1, sizes are (height, width) in pixels."""
    shard_bytes = [shard.num_bytes for shard in manifest.shards]
    return {
        "num_samples": manifest.num_samples,
        "num_pixels": manifest.num_pixels,
        "channels": manifest.channels,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "classes": _classes(manifest),
        "ignored_share": manifest.ignored_pixels / manifest.num_pixels,
        "min_size": list(manifest.min_size),
        "max_size": list(manifest.max_size),
        "sizes": [{"size": [h, w], "images": images} for h, w, images in manifest.sizes],
        "shards": {
            "num": len(manifest.shards),
            "samples": _spread(manifest.shard_sizes),
            "bytes": {**_spread(np.array(shard_bytes)), "total": sum(shard_bytes)},
        },
    }


def tables(manifest: Manifest, title: str) -> Group:
    """The numbers for the terminal, in percent."""
    palette, numbers = Palette.from_records(manifest.palette_records), summarize(manifest)
    shards = numbers["shards"]
    megabytes = {name: f"{value / 1e6:.1f}" for name, value in shards["bytes"].items()}
    lines = [
        f"{title}: {manifest.num_samples:,} samples in {shards['num']:,} shards, {megabytes['total']} MB",
        f"{CHANNEL_NAMES[manifest.channels]}, mean {_colors(manifest.mean)}, std {_colors(manifest.std)} of 0..255",
        f"shards: {_range(shards['samples'])} samples, {_range(megabytes)} MB (least, median, most)",
    ]
    classes = Table("index", "", "class", title_justify="left")
    for heading in ("pixels %", "images", "images %", "% of them"):
        classes.add_column(heading, justify="right")
    for row, color in zip(numbers["classes"], palette.colors.tolist(), strict=True):
        classes.add_row(
            str(row["index"]),
            f"[on rgb({color[0]},{color[1]},{color[2]})]  [/]",
            escape(row["name"]),
            *_cells(row),
            style=None if row["images"] else "dim",
        )
    classes.add_row("", "", "ignored", f"{100 * numbers['ignored_share']:.2f}", style="dim")
    classes.caption = "% of them: pixels of the class, relative to the valid pixels of the images that contain it"
    classes.caption_justify = "left"
    sizes = Table("size", title_justify="left")
    for heading in ("images", "images %"):
        sizes.add_column(heading, justify="right")
    for name, images in _sizes(manifest):
        sizes.add_row(name, f"{images:,}", f"{100 * images / manifest.num_samples:.1f}")
    return Group(*map(escape, lines), classes, sizes)


def draw(manifest: Manifest, title: str) -> np.ndarray:
    """Bars of the classes' pixels, in the classes' colours, and of the images' sizes: (H, W, 3) uint8."""
    palette = Palette.from_records(manifest.palette_records)
    classes: list[_Bar] = [
        (
            _short(row["name"]),
            row["pixels_share"],
            f"{100 * row['pixels_share']:.2f} %   in {row['images']:,} images",
            (color[0], color[1], color[2]),
        )
        for row, color in zip(_classes(manifest), palette.colors.tolist(), strict=True)
    ]
    ignored = manifest.ignored_pixels / manifest.num_pixels
    classes.append(("ignored", ignored, f"{100 * ignored:.2f} %", None))
    sizes: list[_Bar] = [
        (name, images / manifest.num_samples, f"{images:,} images", _BAR) for name, images in _sizes(manifest)
    ]
    (low_height, low_width), (high_height, high_width) = manifest.min_size, manifest.max_size
    extent = f"{low_width}x{low_height} to {high_width}x{high_height} (width x height)"
    parts = [
        _chart(f"{title}: {manifest.num_samples:,} samples, share of the pixels", classes),
        _chart(f"sizes: {extent}, {CHANNEL_NAMES[manifest.channels]}", sizes),
    ]
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), _PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return np.asarray(sheet)


# Name, fraction 0..1, remark, colour (None: that of ignored pixels).
_Bar = tuple[str, float, str, tuple[int, int, int] | None]


def _chart(title: str, bars: Sequence[_Bar]) -> Image.Image:
    """Horizontal bars, relative to the longest one."""
    font, large = ImageFont.load_default(_FONT_PX), ImageFont.load_default(_FONT_PX + 3)
    left = 32 + max(round(font.getlength(name)) for name, *_ in bars)
    remark = max(round(font.getlength(text)) for *_, text, _ in bars)
    width = max(left + _BAR_PX + remark + 36, round(large.getlength(title)) + 40)
    chart = Image.new("RGB", (width, 3 * _LINE_PX + len(bars) * _LINE_PX), _PAPER)
    pen = ImageDraw.Draw(chart)
    pen.text((20, _LINE_PX), title, _INK, large, anchor="lm")
    # Relative to the longest bar, because rare classes would be invisible otherwise.
    longest = max(share for _, share, *_ in bars) or 1.0
    for row, (name, share, text, color) in enumerate(bars):
        top = (2 + row) * _LINE_PX
        middle, end = top + _LINE_PX // 2, left + round(_BAR_PX * share / longest)
        pen.text((left - 10, middle), name, _INK, font, anchor="rm")
        if share:
            box = (left, top + 4, max(end, left + 2), top + _LINE_PX - 5)
            if color is None:
                stripes = paint(np.full((box[3] - box[1], box[2] - box[0]), IGNORE_INDEX), np.zeros((0, 3)))
                chart.paste(Image.fromarray(stripes), box[:2])
            pen.rectangle(box, color, _FRAME)
        pen.text((end + 10, middle), text, _FAINT, font, anchor="lm")
    return chart


def _classes(manifest: Manifest) -> list[dict[str, Any]]:
    names = Palette.from_records(manifest.palette_records).class_names
    counts = zip(names, manifest.class_pixels, manifest.class_images, manifest.presence_pixels, strict=True)
    return [
        {
            "index": index,
            "name": name,
            "pixels": pixels,
            "pixels_share": pixels / manifest.num_pixels,
            "images": images,
            "images_share": images / manifest.num_samples,
            "share_where_present": pixels / presence if presence else None,
        }
        for index, (name, pixels, images, presence) in enumerate(counts)
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    where_present = row["share_where_present"]
    return [
        f"{100 * row['pixels_share']:.2f}",
        f"{row['images']:,}",
        f"{100 * row['images_share']:.1f}",
        "-" if where_present is None else f"{100 * where_present:.2f}",
    ]


def _sizes(manifest: Manifest) -> list[tuple[str, int]]:
    """The most common sizes as text, and the number of their images."""
    named = [(f"{width}x{height}", images) for height, width, images in manifest.sizes]
    others = manifest.num_samples - sum(images for _, images in named)
    return [*named, ("other sizes", others)] if others else named


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def _range(spread: dict[str, Any]) -> str:
    values = (spread[name] for name in ("min", "median", "max"))
    return " / ".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def _colors(values: Sequence[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
