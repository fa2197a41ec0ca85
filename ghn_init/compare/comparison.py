"""The result of a comparison: a table, and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ghn_init.analysis.plots.palette import series_style
from ghn_init.analysis.results import Result, new_figure, text_table
from ghn_init.compare.differences import Difference, paired_difference
from ghn_init.compare.finetune import Outcome
from ghn_init.compare.settings import FineTuning, Point
from ghn_init.errors import GHNInitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One initialization.

    Arguments:
        method: its label.
        point: hyperparameters of its runs.
        outcomes: of its runs, by seed.
        choice: validation accuracies of the runs among which `point` was chosen; None where a run
            diverged. Empty: there was nothing to choose.
    """

    method: str
    point: Point
    outcomes: tuple[Outcome, ...]
    choice: Mapping[Point, float | None]

    @property
    def accuracies(self) -> list[float]:
        """Of the runs that did not diverge."""
        return [o.accuracy for o in self.outcomes if o.accuracy is not None]

    @property
    def diverged(self) -> int:
        """Runs that did."""
        return len(self.outcomes) - len(self.accuracies)

    @property
    def mean(self) -> float | None:
        """Of the accuracies; None without any."""
        return statistics.mean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the accuracies; None of fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def initializing(self) -> float:
        """Median of the seconds that the initialization took."""
        return statistics.median(outcome.initializing for outcome in self.outcomes)

    def steps_to(self, accuracy: float) -> float | None:
        """Median over all runs of the steps to reach an accuracy; None where that is never."""
        steps = statistics.median(outcome.reached(accuracy) for outcome in self.outcomes)
        return steps if math.isfinite(steps) else None


@dataclass(frozen=True)
class Comparison(Result):
    """What `compare` found.

    Arguments:
        name: of the model.
        how: the budget of each run.
        images: numbers of training, validation and test images.
        classes: number of classes.
        checkpoints: the hypernetworks, each with its checksum.
        reach: accuracies, in percent, to count the steps to.
        rows: one a method.
        left_out: methods that do not apply, with the reason, where all were asked for.
    """

    name: str
    how: FineTuning
    images: tuple[int, int, int]
    classes: int
    checkpoints: tuple[str, ...]
    reach: tuple[float, ...]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def differences(self, baseline: str | None = None) -> tuple[Difference, ...]:
        """The difference of each other method's final accuracy to a baseline's, paired by seed.

        Arguments:
            baseline: label of a method. Default: the first.

        Raises:
            GHNInitError: there is no such method in this comparison.
        """
        rows = {row.method: row for row in self.rows}
        name = self.rows[0].method if baseline is None else baseline
        if name not in rows:
            raise GHNInitError(f"no method {name!r} was compared: there are {', '.join(rows)}.")
        by_seed = {label: [o.accuracy for o in row.outcomes] for label, row in rows.items()}
        return tuple(
            paired_difference(label, found, name, by_seed[name])
            for label, found in by_seed.items()
            if label != name
        )

    def table(self) -> str:
        """Mean and standard deviation of the final accuracy, and steps to given ones.

        Of several seeds, also the differences to the first method.
        """
        header = ["method", "predicted", "lr", "decay", "accuracy", "std"]
        header += [*(f"to {value:g}%" for value in self.reach), "init (s)"]
        diverged = any(row.diverged for row in self.rows)
        lines = [self._cells(row, diverged) for row in self.rows]
        table = text_table([*header, *(["diverged"] if diverged else [])], lines)
        left_out = [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*self._about(diverged), table, *self._differences(), *left_out])

    def _differences(self) -> Iterator[str]:
        if len(self.rows) > 1 and len(self.rows[0].outcomes) > 1:
            yield "difference in points, paired by seed, with its 95% confidence interval:"
            yield from (f"  {difference}" for difference in self.differences())

    def _cells(self, row: Row, diverged: bool) -> list[object]:
        mean = "diverged" if row.mean is None else f"{row.mean:.1f}"
        predicted = max(outcome.predicted for outcome in row.outcomes)
        cells: list[object] = [row.method, f"{100 * predicted:.1f}%" if predicted else None]
        cells += [f"{row.point.lr:g}", f"{row.point.weight_decay:g}", mean]
        cells.append(None if row.deviation is None else f"{row.deviation:.1f}")
        cells += [_steps(row.steps_to(accuracy)) for accuracy in self.reach]
        cells.append(f"{row.initializing:.1f}" if row.initializing else None)
        if diverged:
            cells.append(f"{row.diverged} of {len(row.outcomes)}" if row.diverged else None)
        return cells

    def _about(self, diverged: bool) -> Iterator[str]:
        train, choice, test = self.images
        how, seeds = self.how, len(self.rows[0].outcomes)
        epochs = how.steps * how.batch_size / train
        yield (
            f"{self.name}: {train} images of {self.classes} classes, {how.steps} steps of "
            f"{how.batch_size} ({epochs:.3g} epochs), {how.optimizer}, {how.precision}"
        )
        yield f"accuracy in percent on {test} test images, {seeds} seed{'s' * (seeds > 1)}"
        if any(row.choice for row in self.rows):
            tried = max(len(row.choice) for row in self.rows)
            yield (
                f"lr and decay: for each method the best of {tried} on {choice} training images "
                "that are held out"
            )
        yield from (f"checkpoint {checkpoint}" for checkpoint in self.checkpoints)
        if self.reach:
            every = how.evaluations()[0]
            yield f"to x%: median steps, looked at every {every}; -: not reached"
        if diverged:
            yield "diverged: runs that ended with a loss or outputs that are not finite; accuracy "\
                  "and std are those of the others"  # fmt: skip

    def plot(self) -> Figure:
        """Learning curves: the mean of each method, and a thin line for each seed."""
        figure = new_figure(7, 4.5, dpi=120)
        axes = figure.subplots()
        for index, row in enumerate(self.rows):
            _draw(axes, row, index)
        axes.set_xlabel(f"steps of {self.how.batch_size} images")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"{self.name}, {self.images[0]} labeled images", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, fontsize=8)
        return figure

    def content(self) -> dict[str, Any]:
        """Settings, and accuracies, curves and choices by method."""
        return {
            "model": self.name,
            **vars(self.how),
            "images": dict(zip(("train", "validation", "test"), self.images, strict=True)),
            "classes": self.classes,
            "checkpoints": list(self.checkpoints),
            "methods": {row.method: self._row_content(row) for row in self.rows},
            "left_out": dict(self.left_out),
            "differences": [vars(difference) for difference in self.differences()],
        }

    def _row_content(self, row: Row) -> dict[str, Any]:
        return {
            **vars(row.point),
            "mean": row.mean,
            "std": row.deviation,
            "diverged": row.diverged,
            "initializing": row.initializing,
            "steps_to": {f"{value:g}": row.steps_to(value) for value in self.reach},
            "choice": [{**vars(p), "accuracy": accuracy} for p, accuracy in row.choice.items()],
            "runs": [{"accuracy": o.accuracy, **vars(o)} for o in row.outcomes],
        }


def _steps(steps: float | None) -> str | None:
    return None if steps is None else f"{steps:g}"


def _draw(axes: Axes, row: Row, index: int) -> None:
    style = series_style(index)
    for outcome in row.outcomes:
        steps, accuracies = [s for s, _ in outcome.curve], [a for _, a in outcome.curve]
        axes.plot(steps, accuracies, color=style.color, alpha=0.3, linewidth=0.8)
        if outcome.diverged_at is not None:
            end = accuracies[-1] if accuracies else 0.0
            axes.plot([outcome.diverged_at], [end], "x", color=style.color)
    steps, means = _mean_curve(row)
    label = f"{row.method} ({row.diverged} of {len(row.outcomes)} diverged)"
    axes.plot(
        steps, means, color=style.color, linestyle=style.dash, linewidth=1.8, marker=style.marker,
        markersize=4, label=label if row.diverged else row.method,
    )  # fmt: skip


def _mean_curve(row: Row) -> tuple[list[int], list[float]]:
    """Steps, and mean accuracies of the runs that did not diverge."""
    finished = [outcome.curve for outcome in row.outcomes if outcome.diverged_at is None]
    looks = list(zip(*finished, strict=True))
    return [look[0][0] for look in looks], [statistics.mean(a for _, a in look) for look in looks]
