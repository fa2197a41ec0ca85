"""Differences between methods, paired by seed, with their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantiles of Student's t distribution with 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, over the seeds in which both ended well.

    Arguments:
        method, baseline: labels.
        mean: of the differences of the final accuracies, in points; None without a common seed.
        half_width: of its 95% confidence interval, by Student's t distribution; None of fewer than
            two seeds.
        wins: seeds in which the method is better.
        seeds: in which both ended well.
    """

    method: str
    baseline: str
    mean: float | None
    half_width: float | None
    wins: int
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.mean is not None and self.half_width is not None and (
            abs(self.mean) > self.half_width
        )  # fmt: skip

    def __str__(self) -> str:
        if self.mean is None:
            return f"{self.method} - {self.baseline}: no seed in which both ended well"
        interval = "" if self.half_width is None else f" +- {self.half_width:.1f}"
        return (
            f"{self.method} - {self.baseline}: {self.mean:+.1f}{interval}, better in {self.wins} "
            f"of {self.seeds} seeds"
        )


def paired_difference(
    method: str,
    accuracies: Sequence[float | None],
    baseline: str,
    others: Sequence[float | None],
) -> Difference:
    """One method's difference to another's.

    Runs of one seed see the same images in the same order, so that what a seed brings to both
    cancels.

    Arguments:
        method: its label.
        accuracies: of its runs by seed, in percent; None for a run that diverged.
        baseline: label of the other method.
        others: of the other's runs, likewise.
    """
    pairs = zip(accuracies, others, strict=True)
    found = [mine - other for mine, other in pairs if mine is not None and other is not None]
    mean = statistics.mean(found) if found else None
    wins = sum(difference > 0 for difference in found)
    return Difference(method, baseline, mean, half_width(found), wins, len(found))


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95% confidence interval of a mean of independent values; None of fewer than two."""
    if len(values) < 2:
        return None
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))
