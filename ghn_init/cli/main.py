"""The command line `ghn-init`.

Everything heavy is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ghn_init.cli.analysis import add_parsers as add_analysis
from ghn_init.cli.compare import add_parser as add_comparison
from ghn_init.cli.train import add_parser as add_training
from ghn_init.errors import GHNInitError
from ghn_init.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code is 0, or 1 with one line on stderr saying what went wrong.

    Arguments:
        arguments: without the program's name. Default: `sys.argv`.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return int(options.run(options) or 0)
    except GHNInitError as error:
        print(f"ghn-init: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("ghn-init: interrupted", file=sys.stderr)
        return 130


def _show_warning(message: Warning | str, *_: Any) -> None:
    from tqdm import tqdm

    tqdm.write(f"ghn-init: warning: {message}", file=sys.stderr)  # above a progress bar


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghn-init",
        description="Initialize vision models with parameters predicted by graph hypernetworks.",
    )
    parser.add_argument("--version", action="version", version=f"ghn-init {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_export(commands)
    _add_trace(commands)
    _add_list(commands)
    _add_convert(commands)
    _add_verify(commands)
    add_analysis(commands)
    add_comparison(commands)
    add_training(commands)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a timm or torchvision name, or file.py:factory"
    )
    parser.add_argument("--library", choices=("timm", "torchvision"), help="default: timm first")
    parser.add_argument("--num-classes", type=int, metavar="N", help="default: the library's")


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write an initialized model to a safetensors file")
    _add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--method", default="ghn3-orth", help="default: %(default)s")
    parser.add_argument("--ghn", metavar="CHECKPOINT", help="name or path; see `ghn-init list`")
    parser.add_argument("--head", default="auto", help="auto (default), predict or keep")
    parser.add_argument("--norms", help="auto (default), predict or keep")
    parser.add_argument("--noise", type=float, metavar="BETA", help="default: as published")
    parser.add_argument(
        "--orth-start", type=_layer, metavar="L", help="a layer, or a share of them"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", help="where the hypernetwork computes; default: cpu")
    parser.set_defaults(run=_export)


def _layer(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


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


def _add_trace(commands: Any) -> None:
    parser = commands.add_parser("trace", help="show the graph that a hypernetwork reads")
    _add_model(parser)
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
    nodes = [{"op": n.op, "param": n.param, "shape": n.shape} for n in graph.nodes]
    content = {
        "model": options.model,
        "library": library,
        "nodes": nodes,
        "edges": graph.edges,
        "left": dict(graph.left),
    }
    print(json.dumps(content))


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="show the methods and the checkpoints")
    parser.add_argument("--cached", action="store_true", help="checkpoints on this machine only")
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> None:
    from ghn_init.loading.checkpoint import DEFAULTS, KNOWN, list_cached

    cached = list_cached()
    if options.cached:
        for checkpoint in cached:
            origin = checkpoint.origin
            revision = f"@{origin.revision}" if origin.revision else ""
            print(f"{checkpoint.name:<12} {origin.sha256}  {origin.source}{revision}")
        return
    from ghn_init.loading.embedded import EMBEDDED
    from ghn_init.methods.registry import METHODS

    names = {checkpoint.name for checkpoint in cached}
    print("methods:", ", ".join(METHODS))
    print("checkpoints:")
    for name in KNOWN:
        remarks = [f"default of {arch}" for arch, default in DEFAULTS.items() if default == name]
        remarks += ["cached"] if name in names else []
        print(f"  {name:<12}{', '.join(remarks)}".rstrip())
    print(f"  {EMBEDDED:<12}part of this package; default of ghn3 where there is no network")


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    parser.add_argument("source", metavar="SRC", help="name or path, any known layout")
    parser.add_argument("destination", metavar="DST", help="safetensors file to write")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="to store the weights in; default: as they are")  # fmt: skip
    parser.add_argument("--orth-start", type=_layer, metavar="L",
                        help="what `apply` takes by default; default: as before")  # fmt: skip
    parser.add_argument("--norms", type=_norms, metavar="bn,ln|none",
                        help="norms that `apply` takes by default; default: as before")  # fmt: skip
    parser.set_defaults(run=_convert)


def _norms(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _convert(options: argparse.Namespace) -> None:
    from ghn_init.loading.checkpoint import convert

    convert(
        options.source,
        options.destination,
        dtype=options.dtype,
        orth_start=options.orth_start,
        norms=options.norms,
    )
    print(f"written to {options.destination}")


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify", help="compare a checkpoint's predictions with the published norms"
    )
    parser.add_argument("checkpoint", nargs="?", default="ghn3xlm16", metavar="CHECKPOINT")
    parser.add_argument("--table", metavar="FILE", help="JSON of norms by torchvision model")
    parser.add_argument("--models", metavar="A,B,...", help="default: all in the table")
    parser.add_argument("--example", metavar="FILE", help="a ResNet-50 predicted elsewhere")
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from ghn_init.loading.load import load_ghn
    from ghn_init.progress import Progress
    from ghn_init.verify import Check, published_norms, read_table, verify, verify_example

    norms = read_table(options.table) if options.table else published_norms(options.checkpoint)
    models = options.models.split(",") if options.models else list(norms)
    ghn = load_ghn(options.checkpoint)
    print(f"{'model':<22}{'expected':>14}{'found':>14}")
    with Progress(len(models), "model") as progress:

        def show(check: Check) -> None:
            progress.write(str(check))
            progress.step()

        checks = verify(ghn, norms, models, show)
    if options.example or options.checkpoint.partition("@")[0] == "ghn3xlm16":
        checks.append(verify_example(ghn, options.example))
        print(checks[-1])
    failed = sum(not check.ok for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks agree")
    return 1 if failed else 0
