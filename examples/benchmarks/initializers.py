"""What the methods that run the model take, in units of the model's forward and backward pass.

    python examples/benchmarks/initializers.py --threads 1

Each method is run for few steps and for more, on the same batch as the unit, in one process; the
difference is the cost of a step. LSUV is one forward pass with layers that are scaled on the way.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _common import CLOCKS, median, table, timed
from torch import Tensor, nn

import ghn_init
from ghn_init.methods import parse_method

METHODS = ("lsuv", "gradinit", "nio", "metainit")
FEW, MORE = 1, 4


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    labels = torch.arange(options.batch) % options.classes
    rows = []
    for name in options.models:
        model, _ = ghn_init.create_model(name, num_classes=options.classes)
        unit = median(timed(lambda: training_pass(model, images, labels), 5, options.clock)[0])  # noqa: B023
        rows += [[name, *row] for row in measured(model, images, labels, unit, options)]
    print(table(["model", "method", "a step", "steps by default", "all of them"], rows))
    print(f"in forward and backward passes of {options.batch} images, {options.clock} time")


def measured(
    model: nn.Module, images: Tensor, labels: Tensor, unit: float, options: argparse.Namespace
) -> list[list[object]]:
    """A row for each method: units that a step takes, steps, and units that all take."""
    rows: list[list[object]] = []
    for method in METHODS:
        few = seconds(initialize(model, method, FEW, images, labels), options)
        if method == "lsuv":
            rows.append([method, None, None, few / unit])
            continue
        more = seconds(initialize(model, method, MORE, images, labels), options)
        step = max(0.0, more - few) / (MORE - FEW) / unit
        steps = parse_method(method).own.steps
        rows.append([method, step, steps, step * steps])
    return rows


def seconds(function: Callable[[], object], options: argparse.Namespace) -> float:
    return median(timed(function, options.repeat, options.clock)[0])


def initialize(
    model: nn.Module, method: str, steps: int, images: Tensor, labels: Tensor
) -> Callable[[], nn.Module]:
    """Initializes a copy of the model; every step sees all images."""
    at_hand: dict[str, Any] = {"images": images, "labels": labels}
    given = {name: at_hand[name] for name in parse_method(method).uses}

    def run() -> nn.Module:
        text = f"{method}:batch={len(images)}"
        made = None if method == "lsuv" else steps
        found: nn.Module = ghn_init.apply(copy.deepcopy(model), text, steps=made, **given)
        return found

    return run


def training_pass(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    model.train()
    F.cross_entropy(model(images), labels).backward()
    model.zero_grad()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["resnet18", "vgg11"])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="cpu", choices=tuple(CLOCKS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
