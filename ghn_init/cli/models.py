"""The commands `ghn-init export` and `trace`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn_init.cli.arguments import (
    Commands,
    add_ghn,
    add_head,
    add_model,
    add_noise,
    add_num_classes,
    add_seed,
    add_source,
    add_upload,
    upload_options,
)

if TYPE_CHECKING:  # heavy
    from collections.abc import Callable

    from torch import nn

    from ghn_init.loading.upload import Upload
    from ghn_init.report import Report


def add_parsers(commands: Commands) -> None:
    """Add the commands to `ghn-init`."""
    _add_export(commands)
    _add_trace(commands)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write an initialized model to safetensors files")
    add_model(parser)
    add_num_classes(parser)
    parser.add_argument("-o", "--output", metavar="PATH", help="a file, NAME.safetensors, or a "
                        "folder, for a model of any size")  # fmt: skip
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of the files in a folder; "
                        "default: 5GB")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="of floating point numbers; default: the model's")  # fmt: skip
    parser.add_argument("--push", metavar="ORG/NAME",
                        help='upload for timm.create_model("hf-hub:ORG/NAME")')  # fmt: skip
    add_upload(parser)
    parser.add_argument("--method", default="ghn3-orth", help="default: %(default)s")
    add_ghn(parser)
    add_head(parser)
    parser.add_argument("--norms", help="auto (default), predict or keep")
    add_noise(parser)
    add_source(parser)
    parser.add_argument("--images", metavar="DIR", help="images by class, for methods that need "
                        "images or labels")  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="of methods that take steps; "
                        "default: the method's")  # fmt: skip
    parser.add_argument("--state", metavar="FILE", help="where such a method keeps how far it is, "
                        "so that the same command goes on")  # fmt: skip
    add_seed(parser)
    parser.add_argument("--device", help="where the hypernetwork computes; default: cpu")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from ghn_init.errors import GHNInitError
    from ghn_init.models import model_builder
    from ghn_init.publishing import check_timm, push_model

    if not options.output and not options.push:
        raise GHNInitError("give what to write (-o PATH), or a repository (--push ORG/NAME).")
    if options.push and options.output and not options.output.endswith(".safetensors"):
        raise GHNInitError("--push uploads one file: give -o NAME.safetensors, or leave -o out.")
    how = _upload(options) if options.push else None
    build, library = model_builder(
        options.model, options.library, options.num_classes, options.seed
    )
    built = build() if how is not None or options.images is not None else None
    if built is not None and how is not None:
        check_timm(built, options.model)
    with tempfile.TemporaryDirectory(prefix="ghn_init-") as folder:
        output = Path(options.output or Path(folder, "model.safetensors"))
        # Where nothing else needs the model, it need not fit into memory.
        report = _write(options, built or build, library, output)
        print(report)
        if options.output:
            print(f"written to {output}")
        if built is not None and how is not None:
            print(f"uploaded: {push_model(built, output, options.model, report, how)}")


def _write(
    options: argparse.Namespace,
    model: nn.Module | Callable[[], nn.Module],
    library: str,
    output: Path,
) -> Report:
    import torch

    from ghn_init.api import export

    return export(
        model,
        output,
        name=options.model,
        library=library,
        method=options.method,
        dtype=options.dtype and getattr(torch, options.dtype),
        max_shard_size=options.max_shard_size,
        ghn=options.ghn,
        device=options.device,
        head=options.head,
        norms=options.norms,
        noise=options.noise,
        orth_start=options.orth_start,
        steps=options.steps,
        state=options.state,
        seed=options.seed,
        progress=True,
        **_given(options, model),
    )


def _upload(options: argparse.Namespace) -> Upload:
    from ghn_init.loading.upload import Upload, repository_name

    return Upload(repository_name(options.push), **upload_options(options))


def _given(
    options: argparse.Namespace, model: nn.Module | Callable[[], nn.Module]
) -> dict[str, Any]:
    """The arguments of `apply` for methods that need more than the model."""
    from torch import nn

    from ghn_init.analysis.images import folder_batch, traced
    from ghn_init.methods.running import MOST_IMAGES
    from ghn_init.methods.variants import parse_method

    given = {} if options.source is None else {"source": options.source}
    if options.images is None:
        return given
    assert isinstance(model, nn.Module)  # it was built, as there are images
    _, shape = traced(model)
    images, labels = folder_batch(options.images, shape[-1], MOST_IMAGES, options.seed)
    found = {"images": images, "labels": labels}
    uses = parse_method(options.method).uses
    wanted = {name: found[name] for name in found if name in uses}
    return given | (wanted or {"images": images})  # a method that uses none says so


def _add_trace(commands: Commands) -> None:
    parser = commands.add_parser("trace", help="show the graph that a hypernetwork reads")
    add_model(parser)
    add_num_classes(parser)
    parser.add_argument("--json", action="store_true", help="nodes, edges and what is left out")
    parser.set_defaults(run=_trace)


def _trace(options: argparse.Namespace) -> None:
    from ghn_init.graph.tracing import trace
    from ghn_init.models import create_model

    model, library = create_model(options.model, options.library, options.num_classes)
    graph = trace(model)
    if not options.json:
        print(f"{options.model} ({library})\n{graph.summary()}")
        return
    content = {
        "model": options.model,
        "library": library,
        "nodes": [{"op": n.op, "param": n.param, "shape": n.shape} for n in graph.nodes],
        "edges": graph.edges,
        "left": dict(graph.left),
    }
    print(json.dumps(content))
