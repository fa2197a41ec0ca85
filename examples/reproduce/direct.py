"""Tables 2, 4, 12, Figures 1, 4 of the GHN-3 paper: predicted parameters, and an epoch of SGD.

    python examples/reproduce/direct.py --data cifar10 --out runs/reproduce

Networks start with their own initialization (RandInit) or with what each hypernetwork predicts.
Their accuracy is measured before training, after a tenth of an epoch of SGD, and after an epoch. As
in the paper, the top 10 of a hypernetwork are those whose predicted parameters are best, and those
of RandInit the best after an epoch; all networks are trained from RandInit and from the last
hypernetwork that is named, and only their top 10 from the others.

The same for networks of DeepNets-1M, without training (Tables 11 and 12, Figure 5), is
`ghn-init train eval`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from experiment import finish, hypernetworks, mean_std, remember
from networks import Networks, networks, networks_parser
from tqdm import tqdm

from ghn_init import GHN
from ghn_init.analysis import Result, new_figure, text_table, untrained_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RAND = "RandInit"

STAGES: Mapping[str, float] = {"no training": 0.0, "1/10 epoch": 0.1, "1 epoch": 1.0}

TOP: Mapping[str, tuple[str, str, str]] = {
    RAND: ("0.2 ± 0.0", "1.1 ± 0.3", "25.9 ± 1.3"),
    "ghn2": ("0.7 ± 0.4", "7.6 ± 2.7", "16.0 ± 3.2"),
    "ghn3tm8": ("3.9 ± 3.9", "15.3 ± 3.4", "23.9 ± 1.0"),
    "ghn3sm8": ("6.0 ± 6.3", "22.5 ± 5.0", "32.1 ± 1.4"),
    "ghn3lm8": ("10.7 ± 9.3", "26.2 ± 5.1", "37.4 ± 1.9"),
    "ghn3xlm16": ("11.5 ± 8.4", "30.6 ± 7.2", "40.3 ± 3.9"),
}
"""Table 2, PyTorch-10, top-1 accuracy on ImageNet in percent, at each of the stages."""

ALL: Mapping[str, tuple[str, str, str]] = {
    RAND: ("-", "-", "17.1 ± 7.4"),
    "ghn2": ("0.2 ± 0.3", "-", "-"),
    "ghn3xlm16": ("1.7 ± 5.0", "8.3 ± 10.2", "25.5 ± 12.4"),
}
"""Table 12, all 74 models."""

WINS: Mapping[str, tuple[float, float, float]] = {
    "no training": (5, 1.6, -16.4),
    "1/10 epoch": (14, 11.0, -12.0),
    "1 epoch": (74, 12.3, -4.2),
}
"""Table 4: GHN-3-XL/m16 against RandInit after an epoch: wins in percent, average gain and loss."""

Accuracies = Mapping[str, Mapping[str, float]]
"""By stage, then by network, in percent."""


@dataclass(frozen=True)
class Wins:
    """How often an initialization is better than RandInit after an epoch, and by how much.

    Arguments:
        share: of the networks, in percent.
        gain: average over the networks for which it is better, in points; None of none.
        loss: average over the others; None of none.
    """

    share: float
    gain: float | None
    loss: float | None


@dataclass(frozen=True)
class Direct(Result):
    """Accuracies of all networks.

    Arguments:
        found: by initialization: RandInit first, then the hypernetworks.
        parameters: of the hypernetworks, in millions.
        top: how many networks are the top ones.
    """

    found: Mapping[str, Accuracies]
    parameters: Mapping[str, float]
    top: int = 10

    @property
    def best(self) -> str:
        """The hypernetwork from which all networks are trained."""
        return list(self.found)[-1]

    def top_accuracies(self, start: str, stage: str) -> list[float]:
        """Of the top networks of an initialization."""
        names = top_networks(self.found[start], start == RAND, self.top)
        return [self.found[start][stage][name] for name in names]

    def wins(self, stage: str) -> Wins:
        """Of the last hypernetwork."""
        return wins(self.found[self.best][stage], self.found[RAND]["1 epoch"])

    def table(self) -> str:
        """Top networks, all networks, and wins; behind each, the paper's figures."""
        papers = [f"paper, {stage}" for stage in STAGES]
        header, none = ["initialization", *STAGES, *papers], ("-",) * 3
        count = len(self.found[RAND]["1 epoch"])
        tops, everything = [], []
        for start, by_stage in self.found.items():
            cells = (mean_std(self.top_accuracies(start, stage)) for stage in STAGES)
            tops.append([start, *cells, *TOP.get(start, none)])
            complete = (v if len(v) == count else {} for v in by_stage.values())
            cells = (mean_std(list(values.values())) for values in complete)
            everything.append([start, *cells, *ALL.get(start, none)])
        rows = [
            [stage, w.share, w.gain, w.loss, *WINS[stage]]
            for stage, w in ((stage, self.wins(stage)) for stage in STAGES)
        ]
        columns = ["wins, %", "average gain", "average loss"]
        columns = [f"{self.best}", *columns, *(f"paper, {column}" for column in columns)]
        return "\n".join([
            f"accuracy of the top {self.top} of {count} networks, % (paper: Table 2, PyTorch-10)",
            text_table(header, tops),
            f"\naccuracy of all {count} networks, % (paper: Table 12, 74 networks)",
            text_table(header, everything),
            f"\n{self.best} against {RAND} after an epoch (paper: Table 4, ghn3xlm16)",
            text_table(columns, rows),
        ])  # fmt: skip

    def plot(self) -> Figure:
        """Every network from both initializations (Figure 4); top networks by the size (Figure 1).

        The second is drawn for several hypernetworks.
        """
        panels = 1 + (len(self.parameters) > 1)
        figure = new_figure(9, 4.2 * panels)
        axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
        self._plot_networks(axes[0])
        if panels > 1:
            for stage in STAGES:
                means = [statistics.mean(self.top_accuracies(n, stage)) for n in self.parameters]
                axes[1].plot(list(self.parameters.values()), means, "o-", label=stage)
            axes[1].set_xscale("log")
            axes[1].set(xlabel="parameters of the hypernetwork, millions",
                        ylabel=f"accuracy of its top {self.top}, %")  # fmt: skip
            axes[1].legend(fontsize=8)
        return figure

    def _plot_networks(self, axes: Axes) -> None:
        rand, own = self.found[RAND]["1 epoch"], self.found[self.best]
        names = sorted(rand, key=lambda name: own["1 epoch"][name] - rand[name], reverse=True)
        axes.plot([rand[n] for n in names], "kx", label=f"{RAND}, 1 epoch")
        for stage, marker in zip(STAGES, ("C0v", "C1s", "C2o"), strict=True):
            axes.plot([own[stage][n] for n in names], marker, label=f"{self.best}, {stage}")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set(ylabel="accuracy, %")
        axes.legend(fontsize=8)

    def content(self) -> dict[str, Any]:
        """Accuracies, summaries, and the paper's figures."""
        return {
            "accuracies": self.found,
            "parameters": self.parameters,
            "top": {
                s: {g: self.top_accuracies(s, g) for g in STAGES} for s in self.found
            },
            "wins": {stage: vars(self.wins(stage)) for stage in STAGES},
            "paper": {"Table 2": TOP, "Table 12": ALL, "Table 4": WINS},
        }  # fmt: skip


def main() -> None:
    parser = networks_parser(__doc__)
    parser.add_argument("--top", type=int, default=10, help="default: %(default)s")
    options = parser.parse_args()
    found = networks(options)
    loaded = hypernetworks(options)
    accuracies = {RAND: from_random(found, options)}
    for label, ghn in loaded.items():
        whole = label == list(loaded)[-1]
        accuracies[label] = from_predicted(found, label, ghn, whole, options)
    parameters = {n: sum(p.numel() for p in g.parameters()) / 1e6 for n, g in loaded.items()}
    result = Direct(accuracies, parameters, options.top)
    finish(result, options, "direct", last_line(result))


def from_random(found: Networks, options: argparse.Namespace) -> Accuracies:
    """All networks without training and after an epoch, the top ones after a tenth of one."""
    before = untrained(found, RAND, None, options)
    after = {name: found.accuracy(name, 1) for name in found}
    tops = top_networks({"1 epoch": after}, True, options.top)
    tenth = {name: found.accuracy(name, 0.1) for name in tops}
    return {"no training": before, "1/10 epoch": tenth, "1 epoch": after}


def from_predicted(
    found: Networks, label: str, ghn: GHN, whole: bool, options: argparse.Namespace
) -> Accuracies:
    """All networks without training; all of them after it, or the top ones."""
    before = untrained(found, label, ghn, options)
    wanted = list(found) if whole else top_networks({"no training": before}, False, options.top)
    trained = {
        stage: {name: found.accuracy(name, epochs, ghn) for name in wanted}
        for stage, epochs in STAGES.items()
        if epochs
    }
    return {"no training": before, **trained}


def untrained(
    found: Networks, label: str, ghn: GHN | None, options: argparse.Namespace
) -> dict[str, float]:
    """Accuracies without training, each from its file if it is there."""
    settings = {
        "images": found.data.test.digest(),
        "batch_size": found.protocol.batch_size,
        "ghn": None if ghn is None else ghn.origin.sha256 or ghn.name,
    }
    accuracies = {}
    for name in tqdm(found, unit="network", desc=f"{label}, no training"):
        accuracies[name] = remember(
            options.out / "untrained" / f"{name}-{label}.json",
            settings,
            partial(measure, found, name, ghn),
        )
    return accuracies


def measure(found: Networks, name: str, ghn: GHN | None) -> float:
    return untrained_accuracy(
        found[name], found.data.test, ghn, batch_size=found.protocol.batch_size
    )


def top_networks(accuracies: Accuracies, trained: bool, count: int) -> list[str]:
    """The best networks after an epoch, or without training; of equals the first."""
    by = accuracies["1 epoch" if trained else "no training"]
    return sorted(by, key=lambda name: -by[name])[:count]


def wins(accuracies: Mapping[str, float], baseline: Mapping[str, float]) -> Wins:
    """Of one initialization over the baseline, network by network."""
    differences = [accuracies[name] - baseline[name] for name in baseline]
    better, others = ([d for d in differences if (d > 0) == side] for side in (True, False))
    return Wins(100 * len(better) / len(differences), _mean(better), _mean(others))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def last_line(result: Direct) -> str:
    best, won = result.best, result.wins("1 epoch")
    here = (mean_std(result.top_accuracies(start, "1 epoch")) for start in (best, RAND))
    return (
        f"top {result.top} after an epoch here: {best} {' and RandInit '.join(here)}, wins "
        f"{won.share:.0f}%; paper (Tables 2 and 4): ghn3xlm16 40.3 ± 3.9 and RandInit 25.9 ± 1.3, "
        "wins 74%"
    )


if __name__ == "__main__":
    main()
