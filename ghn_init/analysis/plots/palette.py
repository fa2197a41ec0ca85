"""Colors that color-blind readers can tell apart, always together with a shape or a dash."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito (2008).
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GRAY = "#999999"


@dataclass(frozen=True)
class Style:
    """How one thing looks: color, matplotlib marker and dash."""

    color: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]] = "-"


PRIMITIVE_STYLES = {
    "input": Style(BLACK, "*"),
    "conv": Style(BLUE, "o"),
    "sep_conv": Style(SKY, "o"),
    "dil_conv": Style(SKY, "8"),
    "bias": Style(GRAY, "o"),
    "bn": Style(GREEN, "s"),
    "ln": Style(YELLOW, "s"),
    "sum": Style(VERMILLION, "P"),
    "concat": Style(VERMILLION, "X"),
    "max_pool": Style(ORANGE, "v"),
    "avg_pool": Style(ORANGE, "^"),
    "glob_avg": Style(BLACK, "^"),
    "msa": Style(PURPLE, "h"),
    "cse": Style(PURPLE, "D"),
    "pos_enc": Style(YELLOW, "p"),
}
"""One color and shape a primitive; relatives share one of the two."""

_SERIES = (
    Style(BLUE, "o", "-"),
    Style(VERMILLION, "s", "--"),
    Style(GREEN, "^", "-."),
    Style(BLACK, "D", ":"),
    Style(PURPLE, "v", (0, (5, 1))),
    Style(ORANGE, "P", (0, (3, 1, 1, 1))),
    Style(SKY, "X", (0, (1, 1))),
)


def series_style(index: int) -> Style:
    """The style of the i-th of several series; seven differ, then they repeat."""
    return _SERIES[index % len(_SERIES)]
