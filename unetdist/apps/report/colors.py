"""Colours that can be told from the page, whether it is light or dark."""

from collections.abc import Sequence

LIGHT_PAPER, DARK_PAPER = (251, 250, 247), (21, 21, 23)
"""As in page/style.css."""

LEAST_CONTRAST = 3.0
"""Of lines and marks against what is behind them (WCAG 2.2, 1.4.11)."""

RUNS = (
    ("#0a62b8", "#6fb4ff"),
    ("#b04a06", "#ffa266"),
    ("#0b7358", "#4fd0a4"),
    ("#8a3a99", "#d79bea"),
    ("#6f6000", "#e0cd58"),
    ("#5a6069", "#b0b7c2"),
)
"""On light paper and on dark; blue and orange first, which nearly everybody can tell apart."""

DASHES = {"solid": "", "dash": "9 6", "dot": "2 3", "dashdot": "9 4 2 4"}
"""Of the lines of one run after the other, for no run is told by its colour alone: plotly's name, lengths of SVG."""

Rgb = tuple[int, int, int]


def of_run(index: int) -> tuple[str, str]:
    """Colour of the run of that number, on light paper and on dark."""
    return RUNS[index % len(RUNS)]


def dash_of_run(index: int) -> tuple[str, str]:
    """As plotly calls it and as SVG draws it."""
    return list(DASHES.items())[index % len(DASHES)]


def of_class(color: Sequence[int]) -> tuple[str, str]:
    """A class's colour (r, g, b) as a line on light paper and on dark: darker or lighter where it would vanish."""
    red, green, blue = color
    return (
        to_hex(legible((red, green, blue), LIGHT_PAPER)),
        to_hex(legible((red, green, blue), DARK_PAPER)),
    )


def legible(color: Rgb, paper: Rgb) -> Rgb:
    """The colour, moved towards black or white, away from `paper`, until it has `LEAST_CONTRAST` with it."""
    goal = 0 if luminance(paper) > 0.5 else 255
    for step in range(21):
        red, green, blue = (round(value + (goal - value) * step / 20) for value in color)
        if contrast((red, green, blue), paper) >= LEAST_CONTRAST:
            return red, green, blue
    return goal, goal, goal


def contrast(a: Rgb, b: Rgb) -> float:
    """1..21, as WCAG 2.2 defines it."""
    lower, higher = sorted((luminance(a), luminance(b)))
    return (higher + 0.05) / (lower + 0.05)


def luminance(color: Rgb) -> float:
    """Relative luminance 0..1 of an sRGB colour 0..255."""
    shares = [value / 255 for value in color]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def to_hex(color: Sequence[int]) -> str:
    """#rrggbb."""
    return "#" + "".join(f"{value:02x}" for value in color)
