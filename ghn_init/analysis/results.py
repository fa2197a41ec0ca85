"""What every result of an analysis can do: print itself, draw itself, and be written."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn_init.analysis.extra import plot_extra
from ghn_init.errors import GHNInitError
from ghn_init.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg")


class Result(ABC):
    """The result of an analysis."""

    @abstractmethod
    def table(self) -> str:
        """The figures, as text to read."""

    @abstractmethod
    def plot(self) -> Figure:
        """The picture, a matplotlib figure.

        Raises:
            GHNInitError: the extra `[plot]` is not installed.
        """

    def content(self) -> dict[str, Any]:
        """The figures, as plain dictionaries, lists and numbers; by default all of them."""
        return dict(vars(self))

    def to_json(self) -> str:
        """The figures as JSON; what is unknown or not finite is null."""
        return json.dumps(_plain(self.content()), indent=1, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG or SVG, by the file's suffix; whole or not at all.

        Raises:
            GHNInitError: another suffix, a path that cannot be written, or no extra `[plot]`.
        """
        check_suffix(path, PICTURES)
        save_figure(self.plot(), path)


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure, its size in inches.

    Raises:
        GHNInitError: the extra `[plot]` is not installed.
    """
    figure: Figure = plot_extra("matplotlib.figure").Figure(
        (width, height), dpi=dpi, layout="constrained"
    )
    return figure


def check_suffix(path: str | os.PathLike[str], known: Sequence[str]) -> str:
    """The suffix of a file to write, in lower case.

    Raises:
        GHNInitError: it is none of the known ones.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise GHNInitError(
            f"cannot write {os.fspath(path)!r}: give a name in {' or '.join(known)}."
        )
    return suffix


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG, by the file's suffix, the same bytes every time."""
    suffix = check_suffix(path, PICTURES)
    metadata = {"Date": None} if suffix == ".svg" else {}
    same_ids = plot_extra("matplotlib").rc_context({"svg.hashsalt": "ghn-init"})
    with atomic_path(path) as temporary, same_ids:
        figure.savefig(temporary, format=suffix[1:], metadata=metadata)


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns in line: the first to the left, the others, mostly numbers, to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for first, *others in cells:
        columns = [first.ljust(widths[0])]
        columns += [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
