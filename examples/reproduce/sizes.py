"""Table 1 and Figure 3 of the GHN-3 paper: sizes of hypernetworks, and the time to train them.

    python examples/reproduce/sizes.py --out runs/reproduce

Parameters are counted on the meta device, so that the largest takes no memory. Time is that of a
step of our own trainer (`examples/benchmarks/train_steps.py`), on networks of DeepNets-1M that are
drawn on the fly and on noise for images: neither scale needs any data. On a CPU it is the
processor's time.

Small scale: meta-batch 2, 16 images of 32x32. Paper scale, on a GPU: meta-batch 8, 128 images of
224x224 and 1000 classes; the days are those of the paper's 75 epochs on that GPU, where the paper
has four A100 (for GHN-3-XL eight).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from experiment import finish, parser, remember
from tqdm import tqdm

from ghn_init import GHN
from ghn_init.analysis import Result, new_figure, text_table
from ghn_init.train import TrainConfig, Widths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 75 * (1_281_167 // 128)
"""Of the paper's training: 75 epochs of ImageNet's 1.28 million images, 128 in a step."""

PAPER: Mapping[str, tuple[float, float | None]] = {
    "GHN-2": (2.3, 11.5),
    "GHN-3-T": (6.9, 3.7),
    "GHN-3-S": (35.8, 3.8),
    "GHN-3-L": (214.7, 4.7),
    "GHN-3-XL": (654.4, 4.8),
    "MLP": (6.74, None),
}
"""Millions of parameters, and days (Table 1; MLP: the last row of Table 5)."""

_SMALL = TrainConfig(
    nets="", data="", steps=4, meta_batch=2, batch_size=16, dropout=0.0,
    widths=Widths((16, 32), (64, 128), 1_000_000),
)  # fmt: skip

CONFIGS = {
    "small": _SMALL,
    "paper": replace(
        _SMALL, steps=50, meta_batch=8, batch_size=128, image_size=224, precision="bf16",
        widths=Widths(),
    ),
}  # fmt: skip

CLASSES = {"small": 10, "paper": 1000}


def sized(name: str, config: TrainConfig) -> TrainConfig:
    """The settings of a hypernetwork of Table 1."""
    if name == "GHN-2":
        return replace(config, arch="ghn2", hidden_size=32)
    sizes = {"T": (64, 3), "S": (128, 5), "L": (256, 12), "XL": (384, 24)}
    hidden_size, layers = sizes[name.removeprefix("GHN-3-") if name != "MLP" else "T"]
    arch = "mlp" if name == "MLP" else "ghn3"
    return replace(config, arch=arch, hidden_size=hidden_size, layers=layers)


def parameters(name: str) -> float:
    """Of the hypernetwork for ImageNet, in millions; none of them is allocated."""
    with torch.device("meta"):
        ghn = GHN(sized(name, CONFIGS["paper"]).ghn(1000))
    return sum(p.numel() for p in ghn.parameters()) / 1e6


@dataclass(frozen=True)
class Sizes(Result):
    """Hypernetworks by name.

    Arguments:
        millions: of parameters.
        seconds: a step; of those that were measured.
        whole: whether these are steps of the paper's size.
    """

    millions: Mapping[str, float]
    seconds: Mapping[str, float]
    whole: bool = False

    def days(self, name: str) -> float | None:
        """Of the paper's training; unknown from smaller steps."""
        return self.seconds[name] * STEPS / 86_400 if self.whole and name in self.seconds else None

    def relative(self, name: str) -> float | None:
        """Time of a step over that of GHN-3-T."""
        base = self.seconds.get("GHN-3-T")
        return self.seconds[name] / base if base and name in self.seconds else None

    def table(self) -> str:
        """Parameters, seconds a step, days, and time relative to GHN-3-T; and the paper's."""
        base = PAPER["GHN-3-T"][1]
        assert base is not None
        rows = [
            (name, f"{millions:.2f}", PAPER[name][0], self.seconds.get(name), self.days(name),
             self.relative(name), PAPER[name][1], (PAPER[name][1] or 0) / base or None)
            for name, millions in self.millions.items()
        ]  # fmt: skip
        header = ("hypernetwork", "parameters (M)", "paper", "seconds a step", "days",
                  "time / GHN-3-T", "paper, days", "paper, / GHN-3-T")  # fmt: skip
        return text_table(header, rows)

    def plot(self) -> Figure:
        """Time over the number of parameters, both relative to GHN-3-T; and the paper's."""
        figure = new_figure(5.5, 4)
        axes = figure.subplots()
        here = {n: r for n in self.seconds if (r := self.relative(n)) is not None}
        paper = {n: d / 3.7 for n, (_, d) in PAPER.items() if d is not None}
        for values, label, marker in ((here, "here", "o"), (paper, "paper", "x")):
            axes.plot([self.millions[n] for n in values], list(values.values()), marker,
                      label=label)  # fmt: skip
        for name in self.millions:
            axes.annotate(name, (self.millions[name], here.get(name, paper.get(name, 1))),
                          fontsize=7, xytext=(4, 4), textcoords="offset points")  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel="parameters, millions", ylabel="time to train / that of GHN-3-T")
        axes.legend(fontsize=8)
        return figure

    def content(self) -> dict[str, Any]:
        """Sizes, times, and the paper's figures."""
        return {**vars(self), "days": {n: self.days(n) for n in self.seconds}, "paper": PAPER}


def main() -> None:
    options = arguments()
    config = CONFIGS[options.scale]
    config = replace(config, steps=options.steps or config.steps)
    millions = {name: parameters(name) for name in PAPER}
    seconds = {}
    for name in tqdm(options.sizes, unit="hypernetwork"):
        chosen = sized(name, config)
        seconds[name] = remember(
            options.out / "sizes" / f"{name}.json",
            {"config": asdict(chosen), "device": options.device},
            partial(seconds_per_step, chosen, options.device, CLASSES[options.scale]),
        )
    result = Sizes(millions, seconds, options.scale == "paper")
    finish(result, options, "sizes", last_line(result))


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--sizes", nargs="+", choices=PAPER, default=list(PAPER)[:3],
                       metavar="NAME", help="to be timed: of all hypernetworks that the table "
                       "counts the parameters of; default: the three smallest")  # fmt: skip
    found.add_argument("--steps", type=int, help="that are timed")
    return found.parse_args()


def seconds_per_step(config: TrainConfig, device: str, classes: int) -> float:
    """Of the trainer, behind two steps of warm-up."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from train_steps import measure

    clock = time.process_time if device == "cpu" else time.perf_counter
    timer = measure(config, torch.device(device), 2, clock, classes)
    return sum(timer.seconds.values()) / config.steps


def last_line(result: Sizes) -> str:
    sizes = ", ".join(f"{name} {m:.2f}" for name, m in result.millions.items())
    times = ", ".join(f"{name} {r:.2f}" for name in result.seconds
                      if (r := result.relative(name)) is not None)  # fmt: skip
    return (
        f"millions of parameters here: {sizes}; paper (Table 1): 2.3, 6.9, 35.8, 214.7, 654.4, "
        f"6.74. Time over GHN-3-T's here: {times}; paper: GHN-2 3.11, S 1.03, L 1.27"
    )


if __name__ == "__main__":
    main()
