"""Table 13 of the GHN-3 paper: do predicted parameters tell which networks will be good?

    python examples/reproduce/nas.py --data cifar10 --out runs/reproduce

Kendall's tau between the accuracy of networks after an epoch of SGD from their own initialization,
and what is known without training: their accuracy with predicted parameters, and zero-cost proxies.
At paper scale also with the accuracies of PyTorch's documentation (SOTA). The runs are those of
direct.py: with the same `--out` they are made once.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiment import finish, hypernetworks
from networks import Networks, networks, networks_parser
from torchvision.models import get_model_weights

from ghn_init.analysis import Ranking, Result, kendall_tau, rank, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER: Mapping[str, tuple[float | None, float | None, float | None]] = {
    "random": (0.00, 0.03, 0.07),
    "ghn2": (0.16, 0.08, -0.08),
    "ghn3tm8": (0.22, 0.22, -0.05),
    "ghn3xlm16": (0.24, 0.34, -0.08),
    "SGD-1ep": (1.00, 1.00, 0.05),
    "gradnorm": (0.13, 0.17, 0.34),
    "snip": (0.16, 0.18, 0.34),
    "fisher": (0.12, 0.16, 0.23),
    "jacobcov": (0.23, None, None),
    "plain": (0.20, -0.22, -0.13),
    "synflow-bn": (-0.31, -0.09, -0.08),
    "synflow": (-0.02, 0.40, 0.24),
}
"""Of Table 13: DeepNets-1M by SGD-1ep, PyTorch by SGD-1ep, PyTorch by SOTA."""

COLUMNS = ("DeepNets-1M, SGD-1ep", "PyTorch, SGD-1ep", "PyTorch, SOTA")


@dataclass(frozen=True)
class Taus(Result):
    """A ranking by each truth.

    Arguments:
        rankings: by truth: SGD-1ep, and at paper scale SOTA.
    """

    rankings: Mapping[str, Ranking]

    def table(self) -> str:
        """Ours, and the paper's."""
        first = next(iter(self.rankings.values()))
        metrics = dict.fromkeys([*first.scores, *PAPER])
        rows = [
            (
                metric,
                *(_tau(ranking.taus.get(metric)) for ranking in self.rankings.values()),
                *(_tau(value) for value in PAPER.get(metric, (None,) * 3)),
            )
            for metric in metrics
        ]
        header = ("Kendall's tau", *(f"here, {truth}" for truth in self.rankings), *COLUMNS)
        count = len(first.accuracies)
        about = f"{count} networks here; the last three columns are the paper's"
        chance = f"a random order has tau 0.00 ± {by_chance(count):.2f} (standard deviation)"
        failures = [f"{metric}, {model}: {why}" for metric, model, why in first.failures]
        return "\n".join([about, text_table(header, rows), chance, *failures])

    def plot(self) -> Figure:
        """Accuracy after an epoch over the rank of each score."""
        return next(iter(self.rankings.values())).plot()

    def content(self) -> dict[str, Any]:
        """Rankings by truth, and the paper's figures."""
        rankings = {truth: ranking.content() for truth, ranking in self.rankings.items()}
        return {"rankings": rankings, "paper": {k: list(v) for k, v in PAPER.items()}}


def main() -> None:
    options = networks_parser(__doc__).parse_args()
    found = networks(options)
    accuracies = {name: found.accuracy(name, 1) for name in found}
    scores, failures = measure(found, accuracies, options)
    truths = {"SGD-1ep": accuracies}
    if options.scale == "paper":
        truths["SOTA"] = {name: documented(name) for name in found}
    result = Taus(
        {
            truth: Ranking(
                values, scores, {m: kendall_tau(values, s) for m, s in scores.items()}, failures
            )
            for truth, values in truths.items()
        }
    )
    finish(result, options, "nas", last_line(result))


def measure(
    found: Networks, accuracies: Mapping[str, float], options: argparse.Namespace
) -> tuple[dict[str, Mapping[str, float]], tuple[tuple[str, str, str], ...]]:
    """Scores by metric and network: of every checkpoint, the proxies, and a random order."""
    shape, order = (3, *[found.protocol.image_size] * 2), random.Random(0)
    scores: dict[str, Mapping[str, float]] = {"random": {name: order.random() for name in found}}
    for label, ghn in hypernetworks(options).items():
        by_ghn = rank(
            found, accuracies, options.data, ghn=ghn, metrics=(), input_shape=shape,
            results=options.out / f"nas-{label}.json", progress=True,
        )  # fmt: skip
        scores[label] = by_ghn.scores["ghn"]
    results = options.out / "nas-proxies.json"
    proxies = rank(
        found, accuracies, options.data, input_shape=shape, results=results, progress=True
    )
    return {**scores, "SGD-1ep": accuracies, **proxies.scores}, proxies.failures


def documented(name: str) -> float:
    """Top-1 accuracy on ImageNet of torchvision's first weights, in percent."""
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    return float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])


def by_chance(count: int) -> float:
    """Standard deviation of Kendall's tau between random orders without ties (Kendall, 1938)."""
    return math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1))) if count > 1 else math.nan


def last_line(result: Taus) -> str:
    taus = next(iter(result.rankings.values())).taus
    here = ", ".join(f"{m} {_tau(taus[m])}" for m in taus if m not in ("random", "SGD-1ep"))
    return (
        f"tau by SGD-1ep here: {here}; paper (Table 13, PyTorch): ghn3xlm16 0.34, ghn2 0.08, "
        "synflow 0.40, snip 0.18, gradnorm 0.17"
    )


def _tau(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
