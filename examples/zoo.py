"""Initialize every model of timm and torchvision, and write a table of how it went.

    python examples/zoo.py --library timm -o zoo-timm.jsonl
    python examples/zoo.py --library torchvision --ghn ghn3tm8 -o zoo-torchvision.jsonl

Each model is built and initialized in a process of its own, so that its peak memory can be told
and a crash is one line of the table; `--processes` run side by side, one thread each. Models of
more than `--meta-above` parameters are built, and their parameters predicted, on the meta device:
everything runs, but without numbers. A run that was interrupted goes on where it stopped; runs of
other libraries and checkpoints may share a file. `--filter "resnet*"` is a start.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import itertools
import json
import logging
import math
import multiprocessing
import operator
import os
import resource
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError

_LISTED_BY = {"timm": "timm", "torchvision": "torchvision.models"}


def main() -> None:
    options = arguments()
    names = [n for n in library_names(options.library) if fnmatch.fnmatch(n, options.filter)]
    run = {"library": options.library, "ghn": options.ghn}
    rows = [json.loads(line) for line in open_lines(options.output)]
    rows = [row for row in rows if {key: row.get(key) for key in run} == run]
    done = {row["model"] for row in rows}
    # Whatever a model's process needs is imported before it is forked.
    _ = ghn_init.apply, ghn_init.predict, ghn_init.trace, ghn_init.create_model
    torch.set_num_threads(1)
    found = in_own_processes(options, [name for name in names if name not in done])
    with open(options.output, "a") as file:
        for row in tqdm(found, total=len(names), initial=len(done), dynamic_ncols=True):
            rows.append(run | row)
            file.write(json.dumps(run | row) + "\n")
            file.flush()
    print(table(sorted((row for row in rows if row["model"] in set(names)), key=_name)))


_name = operator.itemgetter("model")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=("timm", "torchvision"), default="timm")
    parser.add_argument("--filter", default="*", help="a pattern that names have to match")
    parser.add_argument("--ghn", help="checkpoint; default: a small one with random weights")
    parser.add_argument("--meta-above", type=float, default=5e7, help="default: %(default)g")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, default=Path("zoo.jsonl"))
    return parser.parse_args()


def open_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def library_names(library: str) -> list[str]:
    names: list[str] = importlib.import_module(_LISTED_BY[library]).list_models()
    return names


def hypernetwork(checkpoint: str | None, device: str) -> GHN:
    """The given checkpoint, or a small hypernetwork with seeded random weights."""
    if checkpoint is not None:
        return ghn_init.load_ghn(checkpoint, device)
    torch.manual_seed(0)
    config = GHNConfig("ghn3", 32, 3, 8, (32, 32, 16, 16), 1000)
    return GHN(config, "random").requires_grad_(False).eval().to(device)


def in_own_processes(options: argparse.Namespace, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of the table as they come, of `options.processes` models at a time."""
    context = multiprocessing.get_context("fork")
    waiting = iter(names)
    running: dict[Any, tuple[str, Any]] = {}
    while True:
        for name in itertools.islice(waiting, options.processes - len(running)):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=send_row, args=(sender, options, name))
            process.start()
            sender.close()
            running[receiver] = name, process
        if not running:
            return
        ready: list[Any] = connection.wait(running)
        for receiver in ready:
            name, process = running.pop(receiver)
            try:
                yield receiver.recv()
            except EOFError:
                yield {"model": name, "error": "the process died (out of memory?)"}
            process.join()


def send_row(sender: Any, options: argparse.Namespace, name: str) -> None:
    sender.send(initialize(options, name))


def initialize(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Build and initialize one model; what is told of it is one row of the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    row: dict[str, Any] = {"model": name}
    try:
        model = build_where_it_fits(options, name)
        on_meta = any(p.is_meta for p in model.parameters())
        ghn = hypernetwork(options.ghn, "meta" if on_meta else "cpu")
        start = time.perf_counter()
        if on_meta:
            told = predict_only(model, ghn)
        else:
            _, report = ghn_init.apply(model, ghn=ghn, head="predict", return_report=True)
            told = coverage(report.shapes, report.left) | {"notes": list(report.notes)}
        row |= told | {"meta": on_meta, "seconds": round(time.perf_counter() - start, 3)}
    except GHNInitError as error:
        row["error"] = str(error)[:500]
    except Exception as error:  # the table is there to show these
        row["error"] = f"CRASH {type(error).__name__}: {error}"[:500]
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def build_where_it_fits(options: argparse.Namespace, name: str) -> torch.nn.Module:
    """On the meta device if it is large; some builders refuse that, and build on the CPU."""
    try:
        with torch.device("meta"), _NothingDrawn():
            model, _ = ghn_init.create_model(name, options.library)
        if sum(p.numel() for p in model.parameters()) > options.meta_above:
            return model
    except GHNInitError:
        pass
    return ghn_init.create_model(name, options.library)[0]


class _NothingDrawn(TorchFunctionMode):
    """Initializes nothing on the meta device, on which torch takes long to do nothing, too."""

    _STEPS = frozenset(
        f"{name}_"
        for name in ("add", "clamp", "erfinv", "fill", "mul", "normal", "uniform", "zero")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._STEPS and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def predict_only(model: torch.nn.Module, ghn: GHN) -> dict[str, Any]:
    """What is told of a model whose parameters have no numbers to be written to."""
    graph = ghn_init.trace(model)
    predicted = ghn_init.predict(model, ghn, graph, head="predict")
    left = {name: graph.left[name] for name in graph.shapes if name not in predicted}
    return coverage(graph.shapes, left) | {"notes": list(graph.notes)}


def coverage(shapes: Mapping[str, tuple[int, ...]], left: Mapping[str, str]) -> dict[str, Any]:
    total = sum(math.prod(shape) for shape in shapes.values())
    missing: dict[str, int] = {}
    for name, reason in left.items():
        missing[reason] = missing.get(reason, 0) + math.prod(shapes[name])
    return {"params": total, "share": 1 - sum(missing.values()) / total, "left": missing}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'model':<42}{'params':>14}{'share':>9}{'seconds':>9}{'peak MB':>9}  left"]
    for row in rows:
        if "error" in row:
            peak = row.get("peak_mb", "-")
            lines.append(f"{row['model']:<42}{'-':>14}{'-':>9}{'-':>9}{peak:>9}  {row['error']}")
            continue
        reasons = "; ".join(sorted(row["left"], key=row["left"].get, reverse=True))
        lines.append(
            f"{row['model']:<42}{row['params']:>14,}{100 * row['share']:>8.2f}%"
            f"{row['seconds']:>9.2f}{row['peak_mb']:>9,}  {reasons}"
        )
    fine = [row["share"] for row in rows if "share" in row]
    failed = len(rows) - len(fine)
    lines.append(
        f"{len(rows)} models, {failed} failed; share predicted: median "
        f"{100 * statistics.median(fine):.2f}%, mean {100 * statistics.mean(fine):.2f}%"
        if fine
        else f"{len(rows)} models, {failed} failed"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
