"""Tables 5 and 10 of the GHN-3 paper: hypernetworks that are trained without parts of the recipe.

    python examples/reproduce/ablations.py --data cifar10 --out runs/ablations
    torchrun --nproc-per-node 4 examples/reproduce/ablations.py --scale paper --data imagenet \
        --nets deepnets --out runs/ablations

Each hypernetwork is trained by `ghn-init train run`'s trainer. It predicts the parameters of
networks that it has not seen, and the best of them are trained with SGD, as in direct.py. The
figure is their accuracy after an epoch.

The ablations: no penalty on the norms of predicted parameters (gamma, Eq. 10) or a larger one,
weight decay (lambda) in its place, and no graph (the MLP). Not offered by the trainer: a penalty on
the squared norms; GHN-3 without embeddings of backward edges, or of any edges, which are in the
layout of every checkpoint.

Paper scale: GHN-3-T/m8 for 75 epochs of ImageNet, on architectures of DeepNets-1M (`--nets`;
10,000 are made without it), and the 74 models of PyTorch. Small scale: a hypernetwork of width 32,
on members of real families, for 40 steps; and "epochs" of 50 steps.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from direct import STAGES, Accuracies, from_predicted
from experiment import finish, mean_std
from networks import Networks, networks, networks_parser

from ghn_init import METHODS, load_ghn
from ghn_init.analysis import Result, new_figure, text_table
from ghn_init.images import count_images
from ghn_init.methods import register
from ghn_init.train import Schedule, TrainConfig, make_nets, start, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHOLE = "GHN-3-T/m8"

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    WHOLE: {},
    "gamma=0": {"gamma": 0.0},
    "gamma=1e-4": {"gamma": 1e-4},
    "gamma=0, lambda=0.1": {"gamma": 0.0, "weight_decay": 0.1},
    "gamma=0, lambda=0.3": {"gamma": 0.0, "weight_decay": 0.3},
    "no edges, no attention (MLP)": {"arch": "mlp"},
}
"""What differs from the recipe (gamma=3e-5, lambda=0.01)."""

PAPER: Mapping[str, str] = {
    WHOLE: "23.9 ± 1.0",
    "gamma=0": "19.9 ± 4.7",
    "gamma=1e-4": "20.0",
    "gamma=0, lambda=0.1": "21.3",
    "gamma=0, lambda=0.3": "18.9",
    "no edges, no attention (MLP)": "13.4 ± 0.8",
    "squared norms (not offered)": "22.5 ± 2.2",
    "no backward embeddings (not offered)": "20.4 ± 6.9",
    "no edge embeddings (not offered)": "18.9 ± 4.1",
}
"""Tables 5 and 10 and Appendix A.2: accuracy on ImageNet after an epoch, PyTorch-10, in percent."""

_SMALL = TrainConfig(
    nets="", data="", steps=40, holdout=40_000, space="zoo", hidden_size=32, layers=2,
    meta_batch=2, batch_size=32, augment="mirror", lr=1e-3, warmup=10, own_images=True,
)  # fmt: skip
"""With most images held out, as a few thousand are enough, and take less time to decode."""

CONFIGS = {
    "small": _SMALL,
    "paper": TrainConfig(
        nets="", data="", steps=1, image_size=224, batch_size=128, precision="bf16"
    ),
}

EPOCHS = 75
"""Of the training at paper scale."""

NETS = {"small": ("zoo-train", 200), "paper": ("train", 10_000)}
"""Architectures to train on that are made: the split, and how many."""

NETWORKS, TOP = {"small": 8, "paper": None}, {"small": 3, "paper": 10}
"""Networks to predict (the first of those of direct.py), and the best of them, to train."""


@dataclass(frozen=True)
class Ablations(Result):
    """Accuracies by hypernetwork.

    Arguments:
        found: in percent, at each stage of direct.py; after training those of the top networks.
    """

    found: Mapping[str, Accuracies]

    def top(self, name: str, stage: str) -> list[float]:
        """Of the top networks."""
        by_stage = self.found[name]
        return [by_stage[stage][network] for network in by_stage["1 epoch"]]

    def table(self) -> str:
        """Ours, and the paper's."""
        rows = [
            [name, *(mean_std(self.top(name, s)) if name in self.found else None for s in STAGES),
             paper]
            for name, paper in PAPER.items()
        ]  # fmt: skip
        return text_table(["hypernetwork", *STAGES, "paper, 1 epoch"], rows)

    def plot(self) -> Figure:
        """The top networks after an epoch, and their means."""
        figure = new_figure(6, 3)
        axes = figure.subplots()
        for i, name in enumerate(self.found):
            values = self.top(name, "1 epoch")
            axes.barh(i, sum(values) / len(values), color="lightgray")
            axes.plot(values, [i] * len(values), "k.")
        axes.set_yticks(range(len(self.found)), list(self.found), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy after an epoch, %")
        return figure

    def content(self) -> dict[str, Any]:
        """Accuracies, and the paper's figures."""
        return {"accuracies": self.found, "paper": {"Tables 5 and 10": PAPER}}


def main() -> None:
    options = arguments()
    if "mlp" not in METHODS:
        register(replace(METHODS["ghn3"], name="mlp", hypernetwork="mlp",
                         summary="predicted by the MLP"))  # fmt: skip
    configs = {name: replace(config(options), **VARIANTS[name]) for name in options.variants}
    with start(options.device) as world:
        if world.is_main and options.nets is None:
            make_nets(*NETS[options.scale], options.out / "nets", workers=1)
        world.wait()
        schedule = Schedule(workers=options.workers)
        files = {n: train(c, folder(options, n), world, schedule) for n, c in configs.items()}
    if world.is_main:
        evaluated = networks(options)
        first = dict(list(evaluated.builders.items())[: NETWORKS[options.scale]])
        evaluated = replace(evaluated, builders=first)
        found = {name: accuracies(name, path, evaluated, options) for name, path in files.items()}
        finish(Ablations(found), options, "ablations", last_line(Ablations(found)))


def arguments() -> argparse.Namespace:
    found = networks_parser(__doc__)
    found.add_argument("--nets", type=Path, metavar="DIR", help="architectures to train on; "
                       "default: some are made")  # fmt: skip
    found.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS),
                       metavar="NAME", help="rows; default: all that are offered")  # fmt: skip
    found.add_argument("--train-steps", type=int, metavar="N", help="of each hypernetwork")
    found.add_argument("--holdout", type=int, metavar="N", help="images that they do not see")
    found.add_argument("--hidden-size", type=int, metavar="D", help="of each hypernetwork")
    found.add_argument("--workers", type=int, default=0, help="that build networks ahead")
    found.add_argument("--top", type=int, help="networks to train; default: 3, paper: 10")
    options = found.parse_args()
    options.top = options.top or TOP[options.scale]
    if options.scale == "small" and options.steps is None:
        options.steps = 50
    return options


def config(options: argparse.Namespace) -> TrainConfig:
    """The recipe at a scale, with what the options change."""
    base = CONFIGS[options.scale]
    base = replace(
        base,
        nets=str(options.nets or options.out / "nets"),
        data=options.data,
        holdout=base.holdout if options.holdout is None else options.holdout,
        hidden_size=options.hidden_size or base.hidden_size,
    )
    if options.scale == "paper":
        base = replace(base, steps=EPOCHS * (count_images(options.data) // base.batch_size))
    return replace(base, steps=options.train_steps or base.steps)


def folder(options: argparse.Namespace, name: str) -> Path:
    """Of a hypernetwork's run, and of the runs from its predictions."""
    out: Path = options.out
    return out / re.sub(r"[^\w.=]+", "-", name).strip("-")


def accuracies(
    name: str, path: Path, evaluated: Networks, options: argparse.Namespace
) -> Accuracies:
    """Without training, and of the top networks after it; from files if they were measured."""
    own = folder(options, name)
    return from_predicted(replace(evaluated, out=own), own.name, load_ghn(path), False, options)


def last_line(result: Ablations) -> str:
    here = ", ".join(f"{name} {mean_std(result.top(name, '1 epoch'))}" for name in result.found)
    return (
        f"top networks after an epoch here: {here}; paper (Tables 5 and 10): GHN-3-T/m8 23.9 ± "
        "1.0, gamma=0 19.9 ± 4.7, MLP 13.4 ± 0.8"
    )


if __name__ == "__main__":
    main()
