"""Time and memory of exporting a large model, which is then read back shard by shard.

python examples/benchmarks/large.py vit_7b_patch16_dinov3 --dtype bfloat16
python examples/benchmarks/large.py vit_large_patch16_224 --whole
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _common import in_fresh_process, table, write_json
from safetensors import safe_open
from torch import Tensor, nn

import ghn_init
from ghn_init.hypernetwork import predict_graphs
from ghn_init.methods import kept_head
from ghn_init.weights import PostProcessing, post_process, repeated, weight_layers

SAMPLES = 6
METHOD = "ghn3-orth"


def main() -> None:
    options = arguments()
    folder = options.folder / "model"
    rows = []
    for whole in (False, True) if options.whole else (False,):
        row = in_fresh_process(export, options, folder, whole)
        rows.append([row[key] for key in ("how", "seconds", "cpu_seconds", "peak_gb", "disk_gb")])
        print(row, flush=True)
        found = in_fresh_process(check, options, folder)
        print(found, flush=True)
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.output, {**settings, **row, **found})
    print(table(["", "seconds", "CPU seconds", "peak GB", "on disk GB"], rows))
    if not options.keep:
        shutil.rmtree(folder)


def export(options: argparse.Namespace, folder: Path, whole: bool) -> dict[str, Any]:
    """What `ghn-init export` does, or what it did when the model was built first (`whole`)."""
    torch.set_num_threads(options.threads)
    wall, cpu = time.perf_counter(), time.process_time()

    def build() -> nn.Module:
        return ghn_init.create_model(options.model)[0]

    report = ghn_init.export(
        build() if whole else build,
        folder,
        name=options.model,
        method=METHOD,
        ghn=options.ghn,
        dtype=getattr(torch, options.dtype),
        max_shard_size=options.max_shard_size,
        orth_start=options.orth_start,
        progress=True,
    )
    return {
        "how": "whole" if whole else "by layer",
        "parameters": sum(torch.Size(shape).numel() for shape in report.shapes.values()),
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "disk_gb": sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
    }


def check(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Read all shards, one after the other, and compute some layers again, each by itself."""
    torch.set_num_threads(options.threads)
    with torch.device("meta"):
        model = ghn_init.create_model(options.model)[0]
    graph, ghn = ghn_init.trace(model), ghn_init.load_ghn(options.ghn)
    layers = weight_layers(graph)
    names = [*layers[:: max(1, len(layers) // SAMPLES)], layers[-1]]
    # All of them: what is decoded together shares its rounding.
    (blocks,) = predict_graphs([graph], ghn, [graph.shapes.keys() - kept_head(graph, ghn, "auto")])
    blocks = {name: blocks[name] for name in names if name in blocks}
    start = ghn.defaults.orth_start if options.orth_start is None else options.orth_start
    steps = PostProcessing(ghn_init.METHODS[METHOD].noise or 0, True, start)
    expected = {name: repeated(block, graph.shapes[name]) for name, block in blocks.items()}
    expected |= post_process(graph, blocks, steps, torch.Generator().manual_seed(0)).tensors
    missing, differences = set(model.state_dict()), {}
    for name, tensor in tensors(folder):
        missing.remove(name)
        assert tensor.isfinite().all(), name
        assert tensor.shape == model.state_dict()[name].shape, name
        if name in expected:
            difference = (tensor - expected[name].to(tensor.dtype)).float()
            differences[name] = float(difference.norm() / expected[name].norm())
    assert not missing, missing
    assert differences.keys() == expected.keys()
    return {"compared": len(differences), "largest_difference": max(differences.values())}


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors that the index names, one at a time."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = json.loads(index.read_text())["weight_map"]
    else:
        files = {"": "model.safetensors"}
    for file in sorted(set(files.values())):
        with safe_open(folder / file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                assert len(files) == 1 or files[name] == file
                yield name, opened.get_tensor(name)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="vit_7b_patch16_dinov3")
    parser.add_argument("--ghn", default="embedded")
    parser.add_argument("--orth-start", type=float, metavar="SHARE",
                        help="of the depth, from which layers are orthogonal; published "
                        "checkpoints: 0.685; default: the checkpoint's")  # fmt: skip
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--whole", action="store_true", help="also with the model in memory")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="do not delete the files")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON")
    options = parser.parse_args()
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="ghn_init-"))
    return options


if __name__ == "__main__":
    main()
