"""Time of each stage against the number of nodes and of parameters, as a table and a picture.

    python examples/benchmarks/growth.py --ghn t -o growth.json --plot growth.png

Models are stacks of residual blocks: of 16 channels and growing depth (50 to 10,000 nodes), and
of 20 linear layers of growing width (1 M to 7 B parameters). Models that would take more than a
quarter of the free memory stay on the meta device: they are predicted, but not written.
Behind each column is its growth: the exponent between the last two points.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import (
    CLOCKS,
    FOLDER,
    calibration,
    checkpoint,
    machine,
    median,
    peak,
    reset_peak,
    resident,
    table,
    timed,
    write_json,
)
from torch import Tensor, nn

import ghn_init
from ghn_init import GHN
from ghn_init.hypernetwork import Graphormer, GraphormerLayer, predict_graphs
from ghn_init.weights import assign

NODES = (50, 100, 200, 400, 800, 1500, 3000, 10000)
PARAMETERS = (1e6, 1e7, 1e8, 5e8, 1e9, 2e9, 7e9)
LAYERS = 20
STAGES = ("trace", "distances", "encode", "edge term", "graph network", "predict", "assign")


class Block(nn.Module):
    """Five nodes: two convolutions and norms, and their sum with the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.b = nn.Conv2d(width, width, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm_b(self.b(self.norm_a(self.a(x)).relu()))
        return x + out


def deep(nodes: int) -> nn.Module:
    blocks = [Block(16) for _ in range((nodes - 5) // 5)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), *blocks, *ends)


def wide(parameters: int) -> nn.Sequential:
    width = round((parameters / LAYERS) ** 0.5)
    layers = [[nn.Linear(width, width, bias=False), nn.ReLU()] for _ in range(LAYERS)]
    return nn.Sequential(*[module for pair in layers for module in pair], nn.Linear(width, 10))


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    ghn = ghn_init.load_ghn(checkpoint(options.ghn, options.folder))
    units = calibration(options.clock)
    content: dict[str, Any] = {"machine": machine(options.clock), "calibration": units}
    print(f"GHN-3-{options.ghn.upper()}; a unit (2048^3 matmul) is {units['matmul']:.3f} s")
    for axis, points in (("nodes", by_nodes(options)), ("parameters", by_parameters(options))):
        rows = content[axis] = []
        for model, inputs in points:
            rows.append(measure(model, inputs, ghn, options))
            del model
        print("\n" + growth_table(axis, rows))
    write_json(options.output, content | {"ghn": options.ghn})
    if options.plot:
        plot(options.plot, content)


def by_nodes(options: argparse.Namespace) -> Iterator[tuple[nn.Module, Tensor]]:
    for nodes in NODES:
        if nodes <= options.most_nodes:
            yield deep(nodes), torch.zeros(2, 3, 16, 16)


def by_parameters(options: argparse.Namespace) -> Iterator[tuple[nn.Module, Tensor]]:
    for parameters in PARAMETERS:
        if parameters > options.most_parameters:
            return
        with torch.device("meta"):
            model = wide(int(parameters))
        if 4 * parameters < free_memory() / 4:
            model = model.to_empty(device="cpu")
            for param in model.parameters():
                param.data.zero_()
        yield model, torch.zeros(2, next(model.parameters()).shape[1])


def free_memory() -> int:
    with open("/proc/meminfo") as file:
        line = next(line for line in file if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


@torch.no_grad()
def measure(
    model: nn.Module, inputs: Tensor, ghn: GHN, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each stage, and the memory that all of them took."""
    on_meta = any(p.is_meta for p in model.parameters())
    seconds: dict[str, float] = {}

    def stage(name: str, function: Any) -> Any:
        times, result = timed(function, options.repeat, options.clock)
        seconds[name] = median(times)
        return result

    before = resident()
    reset_peak()
    graph = stage("trace", lambda: ghn_init.trace(model, inputs))
    stage("distances", lambda: replace(graph).distances)
    graph.distances  # noqa: B018 (they are remembered)
    encoded = stage("encode", lambda: ghn.encode([graph]))
    assert isinstance(ghn.gnn, Graphormer)
    first = ghn.gnn[0]
    assert isinstance(first, GraphormerLayer)
    stage("edge term", lambda: first.attn.edge_term(encoded.distances))
    stage("graph network", lambda: ghn(encoded))
    (tensors,) = stage("predict", lambda: predict_graphs([graph], ghn))
    if not on_meta:
        stage("assign", lambda: assign(model, tensors, 0))
    return {
        "nodes": len(graph),
        "parameters": sum(math.prod(shape) for shape in graph.shapes.values()),
        "on_meta": on_meta,
        "seconds": seconds,
        "peak_mb": (peak() - before) >> 20,
    }


def growth_table(axis: str, rows: list[dict[str, Any]]) -> str:
    cells = [[r[axis], *(r["seconds"].get(s) for s in STAGES), r["peak_mb"]] for r in rows]
    growth: list[object] = ["growth"]
    for stage in STAGES:
        points = [(r[axis], r["seconds"][stage]) for r in rows if stage in r["seconds"]][-2:]
        if len(points) < 2:
            growth.append(None)
            continue
        (x0, y0), (x1, y1) = points
        growth.append(math.log(y1 / y0) / math.log(x1 / x0))
    return table([axis, *STAGES, "peak MB"], [*cells, [*growth, None]])


def plot(path: Path, content: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for panel, axis in zip(axes, ("nodes", "parameters"), strict=True):
        for stage in STAGES:
            rows = [row for row in content[axis] if stage in row["seconds"]]
            x = [row[axis] for row in rows]
            panel.loglog(x, [row["seconds"][stage] for row in rows], "o-", label=stage)
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--ghn", default="t", choices=("t", "s", "l", "xl"))
    parser.add_argument("--most-nodes", type=int, default=NODES[-1])
    parser.add_argument("--most-parameters", type=float, default=PARAMETERS[-1])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the hypernetworks")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    return parser.parse_args()


if __name__ == "__main__":
    main()
