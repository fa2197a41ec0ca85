"""Time and peak memory of each stage of `ghn_init.apply`, beside the published implementation.

    python examples/benchmarks/stages.py --ghn xl -o stages-xl.json
    python examples/benchmarks/stages.py --models classifiers --stages trace,graph --repeat 1
    PYTHONPATH=ghn3:ppuda python examples/benchmarks/stages.py --ghn t
    python examples/benchmarks/stages.py --models classifiers --stages trace --together

Seconds are medians over `--repeat` repetitions with the hypernetwork loaded, and also given in
units of one 2048^3 float32 matmul in the same process, so that they compare across machines. The
first table is the first time in a fresh process, where Python imports and the weights are read:
from memory, if they are in the system's cache of files, or with `--cold` from the disk. If
the packages `ghn3` and `ppuda` are importable, the published implementation is timed in the same
run. On a machine that does other work, take `--clock cpu --threads 1`: time of the process's CPU.
(With several threads it counts their waiting.)
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import (
    CALIBRATION_BYTES,
    CLOCKS,
    FOLDER,
    UNIT_FLOP,
    build,
    calibration,
    checkpoint,
    classifiers,
    config,
    forget,
    geometric_mean,
    in_fresh_process,
    machine,
    median,
    peak,
    read_from_disk,
    read_of,
    reset_peak,
    resident,
    table,
    timed,
    write_json,
)

import ghn_init
from ghn_init import Graph
from ghn_init.graph import WEIGHTS
from ghn_init.hypernetwork import predict_graphs, shape4
from ghn_init.weights import (
    PostProcessing,
    assign,
    classifier_weights,
    post_process,
    weight_layers,
)

MODELS = ("resnet50", "vit_b_16", "convnext_base", "efficientnet_v2_s", "mobilenet_v3_small")
STAGES = ("load", "trace", "graph", "predict", "assign", "noise", "orthogonal")
SUM = ("trace", "graph", "predict", "assign")
"""The stages that the published implementation's figures are about."""

NEEDED = ("decoder", "graph network", "reading")

START = 0.685


def main() -> None:
    options = arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    path = checkpoint(options.ghn, options.folder)
    units = calibration(options.clock, options.device)
    published = Published.of(options.ghn)
    rows = []
    for name in options.models:
        row = measure(options, name, path, units, published)
        rows.append(row)
        print(line(row), flush=True)
    content = {"machine": machine(options.clock), "ghn": options.ghn, "calibration": units}
    if options.together:
        content["together"] = together(options, path)
    write_json(options.output, content | {"models": rows})
    print(report(options, rows, units))
    if options.together:
        print("\npredicted as one batch, s: {together}".format_map(content))


class Pipeline:
    """The stages of `ghn_init.apply`; each uses what the ones before it left."""

    def __init__(self, name: str, path: Path, device: str, dtype: str) -> None:
        self.model, self.path = build(name, device), path
        self.device, self.dtype = device, getattr(torch, dtype)
        self.generator = torch.Generator().manual_seed(0)

    def load(self) -> None:
        self.ghn = ghn_init.load_ghn(self.path, self.device, dtype=self.dtype)

    def trace(self) -> None:
        self.traced = ghn_init.trace(self.model)

    def graph(self) -> None:
        self.graphs = [replace(self.traced)]  # one without remembered distances
        self.ghn.encode(self.graphs)

    def predict(self) -> None:
        self.tensors = predict_graphs(self.graphs, self.ghn)[0]

    def assign(self) -> None:
        assign(self.model, self.tensors, 0)

    def noise(self) -> None:
        self._post_process(PostProcessing(3e-5, False, START))

    def orthogonal(self) -> None:
        self._post_process(PostProcessing(0, True, START))

    def both(self) -> None:
        """Noise and orthogonal step, as `apply` takes them."""
        self._post_process(PostProcessing(3e-5, True, START))

    def _post_process(self, steps: PostProcessing) -> None:
        tensors = {name: self.model.get_parameter(name).data for name in self.layers()}
        post_process(self.traced, tensors, steps, self.generator)

    def layers(self) -> list[str]:
        """Weights that are post-processed."""
        every = weight_layers(self.traced)
        first = max(0, PostProcessing(0, True, START).first_layer(len(every)) - 1)
        return [n for n in every[first:] if n not in classifier_weights(self.traced)]

    def torch_orthogonal(self) -> None:
        """What torch itself takes for the same layers."""
        for name in self.layers():
            torch.nn.init.orthogonal_(torch.empty(self.traced.shapes[name], device=self.device))

    def error(self) -> float:
        """Of the predicted tensors against float32: norm of the difference to norm."""
        exact = predict_graphs(self.graphs, ghn_init.load_ghn(self.path, self.device))[0]
        found = predict_graphs(self.graphs, self.ghn)[0]
        difference = sum((found[n].float() - t).square().sum().item() for n, t in exact.items())
        return math.sqrt(difference / sum(t.square().sum().item() for t in exact.values()))


def measure(
    options: argparse.Namespace,
    name: str,
    path: Path,
    units: dict[str, float],
    published: Published | None,
) -> dict[str, Any]:
    """One model: seconds of every stage, memory, what is needed, and the published figures."""
    pipeline = Pipeline(name, path, options.device, options.dtype)
    row: dict[str, Any] = {"model": name, "seconds": {}}
    if not options.no_fresh:
        row |= in_fresh_process(fresh, options, name, path)
    with torch.no_grad():
        pipeline.load()
        for stage in options.stages:
            seconds, _ = timed(getattr(pipeline, stage), options.repeat, options.clock)
            row["seconds"][stage] = median(seconds)
        if "orthogonal" in options.stages:
            for stage in ("both", "torch_orthogonal"):
                seconds, _ = timed(getattr(pipeline, stage), options.repeat, options.clock)
                row["seconds"][stage] = median(seconds)
        if options.dtype != "float32" and "predict" in options.stages:
            row["error"] = pipeline.error()
    row["sum"] = sum(s for stage, s in row["seconds"].items() if stage in SUM)
    unit = units["matmul"]
    row["units"] = row["sum"] / unit
    row["nodes"] = len(pipeline.traced)
    row["parameters"] = sum(math.prod(s) for s in pipeline.traced.shapes.values())
    needed = needed_flop(pipeline.traced, options.ghn)
    row["needed_units"] = {part: flop / UNIT_FLOP for part, flop in needed.items()}
    if "read_mb" in row:
        seconds = (row["read_mb"] << 20) / CALIBRATION_BYTES * units["read"]
        row["needed_units"]["reading"] = seconds / unit
    if published is not None:
        row["published_seconds"] = published.seconds(options, name)
        row["published_units"] = {k: v / unit for k, v in row["published_seconds"].items()}
    return row


def together(options: argparse.Namespace, path: Path) -> float:
    """Median seconds of predicting all models as one batch, traced before."""
    ghn = ghn_init.load_ghn(path, options.device, dtype=getattr(torch, options.dtype))
    graphs = [ghn_init.trace(build(name, "meta")) for name in options.models]
    with torch.no_grad():
        seconds, _ = timed(
            lambda: len(predict_graphs(graphs, ghn)),
            options.repeat,
            options.clock,
        )
    return median(seconds)


def fresh(options: argparse.Namespace, name: str, path: Path) -> dict[str, Any]:
    """Every stage once in a fresh process: seconds, peak memory, what was read of the weights."""
    from torchvision import models as _

    torch.set_num_threads(options.threads)
    if options.cold:
        forget(path)
    imported, read_before = resident(), read_from_disk()
    pipeline = Pipeline(name, path, options.device, options.dtype)
    built = resident()
    seconds, peaks = {}, {}
    with torch.no_grad():
        for stage in ("load", *(s for s in options.stages if s != "load")):
            reset_peak()
            (seconds[stage],), _ = timed(getattr(pipeline, stage), 1, options.clock)
            peaks[stage] = (peak() - imported) >> 20
    model = sum(p.nbytes for p in pipeline.model.parameters())
    return {
        "first_seconds": seconds,
        "peak_mb": peaks,
        "model_mb": model >> 20,
        "built_mb": (built - imported) >> 20,
        "imported_mb": imported >> 20,
        "read_mb": read_of(path.resolve()) >> 20,
        "disk_mb": (read_from_disk() - read_before) >> 20,
    }


def needed_flop(graph: Graph, size: str) -> dict[str, float]:
    """Arithmetic of the graph network, and of a decoder that computes what the layers use."""
    sizes = config(size)
    d, c, s, n = sizes.hidden_size, sizes.channels, sizes.kernel, len(graph)
    network = sizes.layers * (2 * n * 12 * d * d + 4 * n * n * d)
    decoder, done = 0.0, set()
    heads = {weight for weight, _ in graph.classifiers}
    for i, node in enumerate(graph.nodes):
        if node.shape is None or node.param in done or node.param is None:
            continue
        done.add(node.param)
        if node.op not in (*WEIGHTS, "pos_enc"):
            decoder += 4 * d * (d + c)
            continue
        out, in_, height, width = shape4(node.shape, node.op == "pos_enc")
        if i in heads:
            out, height, width = c, 1, 1
            decoder += 2 * c * min(in_, c) * sizes.num_classes
        positions = min(height, s) * min(width, s)
        decoder += positions * 2 * (4 * d * d + 32 * d * d + 8 * d * min(out, c) * min(in_, c))
    return {"graph network": network, "decoder": decoder}


# -- the published implementation


class Published:
    """The packages `ghn3` and `ppuda`, if they are importable."""

    def __init__(self, size: str) -> None:
        from ghn3 import GHN3

        c = config(size)
        self.ghn = GHN3(
            max_shape=c.max_shape,
            num_classes=c.num_classes,
            hid=c.hidden_size,
            heads=c.heads,
            layers=c.layers,
            weight_norm=True,
            ve=True,
            layernorm=True,
        ).eval()

    @classmethod
    def of(cls, size: str) -> Published | None:
        found = importlib.util.find_spec("ghn3") and importlib.util.find_spec("ppuda")
        return cls(size) if found else None  # it computes on the CPU

    def seconds(self, options: argparse.Namespace, name: str) -> dict[str, float]:
        """Of the graph, the prediction (written into the model), and the post-processing."""
        repeat, clock = options.repeat, options.clock
        from ghn3.graph import Graph as PublishedGraph
        from ghn3.graph import GraphBatch
        from ppuda.utils.init import init

        model = build(name)
        found: dict[str, float] = {}

        def predict() -> None:
            self.ghn(copy.copy(model), GraphBatch([graph], dense=True), bn_track_running_stats=True)

        with contextlib.redirect_stdout(io.StringIO()):
            times, graph = timed(
                lambda: PublishedGraph(model, ve_cutoff=50, dense=True), repeat, clock
            )
            found["trace+graph"] = median(times)
            with torch.no_grad():
                if "predict" in options.stages:
                    found["predict+assign"] = median(timed(predict, repeat, clock)[0])
                if "orthogonal" in options.stages:
                    layers = sum(p.dim() > 1 for p in model.parameters())
                    step = lambda: init(model, orth=True, beta=3e-5, layer=round(START * layers))  # noqa: E731
                    found["noise+orthogonal"] = median(timed(step, 1, clock)[0])
        return found


# -- tables


def line(row: dict[str, Any]) -> str:
    stages = "  ".join(f"{stage} {s:.4f}" for stage, s in row["seconds"].items())
    return f"{row['model']}: {stages}"


def report(options: argparse.Namespace, rows: list[dict[str, Any]], units: dict[str, float]) -> str:
    parts = [
        f"GHN-3-{options.ghn.upper()}, {options.dtype}, {options.device}, {options.threads} "
        f"threads, {options.clock} clock; a unit (2048^3 matmul) is {units['matmul']:.3f} s, "
        f"a copy of 1 GB {units['copy']:.3f} s, reading it {units['read']:.3f} s"
    ]
    if any("error" in row for row in rows):
        errors = ", ".join(f"{row['model']} {row['error']:.4f}" for row in rows)
        parts.append(f"error against float32: {errors}")
    stages = options.stages
    if not options.no_fresh:
        sizes = ("read_mb", "disk_mb", "model_mb")
        header = ["first, in a fresh process, s", *stages, "read MB", "from disk", "model MB"]
        cells = [
            [r["model"], *(r["first_seconds"][s] for s in stages), *(r[size] for size in sizes)]
            for r in rows
        ]
        parts.append(table(header, cells))
        header = ["peak MB, over the imports'", *stages, "read + model", "times"]
        cells = [[r["model"], *(r["peak_mb"][s] for s in stages), *memory(r)] for r in rows]
        parts.append(table(header, cells))
    extra = ["both", "torch_orthogonal"] if "orthogonal" in stages else []
    header = ["seconds", *stages, *extra]
    parts.append(
        table(header, [[r["model"], *(r["seconds"][s] for s in header[1:])] for r in rows])
    )
    if set(SUM) & set(stages):
        parts.append(comparison(rows, [s for s in SUM if s in stages]))
    if {"noise", "orthogonal"} <= set(stages):
        ratios = [r["seconds"]["both"] / r["seconds"]["torch_orthogonal"] for r in rows]
        parts.append(f"noise and orthogonal: {geometric_mean(ratios):.2f} times orthogonal_")
    return "\n\n".join(parts)


def memory(row: dict[str, Any]) -> tuple[int, float]:
    """MB that were read and that the model has, and the peak over that."""
    least = row["read_mb"] + row["model_mb"]
    return least, max(row["peak_mb"].values()) / least


def comparison(rows: list[dict[str, Any]], stages: list[str]) -> str:
    """The sum of the stages against what is needed and what the published one takes.

    What is needed is counted in three ways: the decoder's arithmetic at the speed of the matmul (as
    published figures do), that and the graph network's, and both with one read of the weights
    at the speed of a sum.
    """
    whole = len(stages) == len(SUM)
    header = ["+".join(stages), "s", "units", "decoder", "times", "+ network", "times"]
    header += ["+ reading", "times", "published", "faster"]
    cells: list[list[object]] = []
    for row in rows:
        needs: list[object] = []
        for needed in itertools.accumulate(
            row["needed_units"].get(part, math.nan) for part in NEEDED if whole
        ):
            needs += [None, None] if math.isnan(needed) else [needed, row["units"] / needed]
        found = row.get("published_units", {})
        counted = {"trace+graph", "predict+assign"} if whole else {"trace+graph"}
        published = sum(units for part, units in found.items() if part in counted)
        cells.append(
            [
                row["model"],
                row["sum"],
                row["units"],
                *(needs or [None] * 6),
                published or None,
                published / row["units"] if published else None,
            ]
        )
    means: list[object] = ["geometric mean"]
    for i in range(1, len(header)):
        column = [c for c in (cell[i] for cell in cells) if isinstance(c, float)]
        means.append(geometric_mean(column) if column else None)
    total: list[object] = ["total", sum(r["sum"] for r in rows), sum(r["units"] for r in rows)]
    pairs = [(c[-2], c[2]) for c in cells if isinstance(c[-2], float) and isinstance(c[2], float)]
    published_total, ours = (
        (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 1)
    )
    total += [None] * 6
    total += [published_total or None, published_total / ours if published_total else None]
    return table(header, [*cells, means, total])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--ghn", default="xl", choices=("t", "s", "l", "xl"))
    parser.add_argument("--models", default=",".join(MODELS), metavar="A,B,... or classifiers")
    parser.add_argument("--stages", default=",".join(STAGES), metavar="A,B,...")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--no-fresh", action="store_true", help="no first times and no memory")
    parser.add_argument("--together", action="store_true", help="also predict all as one batch")
    parser.add_argument("--cold", action="store_true", help="first times with the weights on disk")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the hypernetworks")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    options = parser.parse_args()
    options.models = classifiers() if options.models == "classifiers" else options.models.split(",")
    options.stages = options.stages.split(",")
    return options


if __name__ == "__main__":
    main()
