"""The commands `ghn-init export` and `trace`."""

from __future__ import annotations

import argparse
import json

from ghn_init.cli.arguments import (
    Commands,
    add_ghn,
    add_head,
    add_model,
    add_noise,
    add_num_classes,
    add_seed,
)


def add_parsers(commands: Commands) -> None:
    """Add the commands to `ghn-init`."""
    _add_export(commands)
    _add_trace(commands)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write an initialized model to a safetensors file")
    add_model(parser)
    add_num_classes(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--method", default="ghn3-orth", help="default: %(default)s")
    add_ghn(parser)
    add_head(parser)
    parser.add_argument("--norms", help="auto (default), predict or keep")
    add_noise(parser)
    add_seed(parser)
    parser.add_argument("--device", help="where the hypernetwork computes; default: cpu")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from ghn_init.api import export
    from ghn_init.models import create_model

    model, library = create_model(options.model, options.library, options.num_classes, options.seed)
    report = export(
        model,
        options.output,
        name=options.model,
        library=library,
        method=options.method,
        ghn=options.ghn,
        device=options.device,
        head=options.head,
        norms=options.norms,
        noise=options.noise,
        orth_start=options.orth_start,
        seed=options.seed,
    )
    print(report)
    print(f"written to {options.output}")


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
