"""The commands `ghn-init draw`, `diagnose`, `diversity`, `embed` and `rank`."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn_init.cli.arguments import (
    Commands,
    Parser,
    add_ghn,
    add_ghns,
    add_head,
    add_input_shape,
    add_json,
    add_model,
    add_num_classes,
    add_seed,
    add_source,
    names,
    shape,
)

if TYPE_CHECKING:
    from ghn_init.analysis.models import LazyModels
    from ghn_init.analysis.results import Result


def add_parsers(commands: Commands) -> None:
    """Add the commands to `ghn-init`."""
    _add_draw(commands)
    _add_diagnose(commands)
    _add_diversity(commands)
    _add_embed(commands)
    _add_rank(commands)


def _add_outputs(parser: Parser, suffixes: str = ".png or .svg") -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help=f"write the picture: {suffixes}")
    add_json(parser)


def _add_methods(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--methods", default=default, metavar="LIST", help="of `ghn-init list`, or pretrained; "
        "settings follow the name: ghn3-orth:noise=0,norms=keep; default: %(default)s",
    )  # fmt: skip


def _finish(result: Result, options: argparse.Namespace) -> None:
    """Print a result, and write its picture where one is asked for."""
    if options.output is not None:
        result.save(options.output)
    _print(result, options)


def _print(result: Result, options: argparse.Namespace) -> None:
    print(result.to_json() if options.json else result.table())
    if options.output is not None and not options.json:
        print(f"written to {options.output}")


def _check_output(options: argparse.Namespace, *more: str) -> None:
    """Refuse a picture that could not be made before anything long is computed."""
    if options.output is None:
        return
    from ghn_init.analysis.extra import plot_extra
    from ghn_init.analysis.results import PICTURES, check_suffix
    from ghn_init.errors import GHNInitError

    folder = Path(options.output).resolve().parent
    if not os.access(folder, os.W_OK):
        raise GHNInitError(f"cannot write {options.output!r}: no writable folder {str(folder)!r}.")
    if check_suffix(options.output, (*PICTURES, *more)) in PICTURES:
        plot_extra("matplotlib.figure")


def _lazy_models(options: argparse.Namespace, pretrained: bool = False) -> LazyModels:
    from ghn_init.analysis.models import LazyModels

    seed = getattr(options, "seed", 0)
    return LazyModels(options.models, options.library, options.num_classes, seed, pretrained)


def _add_draw(commands: Commands) -> None:
    parser = commands.add_parser("draw", help="draw the graph that a hypernetwork reads")
    add_model(parser)
    add_num_classes(parser)
    add_input_shape(parser)
    parser.add_argument(
        "--ghn", metavar="CHECKPOINT", help="whose coverage is shown, by name or path; default: "
        "that of `ghn-init export` if it is cached, else the embedded one",
    )  # fmt: skip
    add_head(parser)
    _add_outputs(parser, ".png, .svg or .dot")
    parser.set_defaults(run=_draw)


def _draw(options: argparse.Namespace) -> None:
    _check_output(options, ".dot")
    import torch

    from ghn_init.analysis.drawing import draw
    from ghn_init.loading.load import load_ghn
    from ghn_init.models import create_model, short_name
    from ghn_init.progress import Progress

    shape = options.input_shape
    with Progress(3, "step") as line:
        model, _ = create_model(options.model, options.library, options.num_classes)
        ghn = load_ghn(options.ghn or _default_at_hand(), "meta")  # what it predicts has no numbers
        line.step(done="model")
        result = draw(
            model,
            ghn=ghn,
            head=options.head,
            name=short_name(options.model),
            example_inputs=None if shape is None else torch.empty(2, *shape, device="meta"),
        )
        line.step(done="graph")
        if options.output is not None:
            result.save(options.output)
        line.step(done="picture")
    _print(result, options)


def _default_at_hand() -> str:
    """The checkpoint that needs no download: the default if it is cached, else the embedded one."""
    from ghn_init.loading import DEFAULTS, list_cached
    from ghn_init.loading.embedded import EMBEDDED, EMBEDDED_ARCH

    default = DEFAULTS[EMBEDDED_ARCH]
    return default if default in {found.name for found in list_cached()} else EMBEDDED


def _add_diagnose(commands: Commands) -> None:
    parser = commands.add_parser("diagnose", help="compare initializations before training")
    add_model(parser)
    add_num_classes(parser)
    add_input_shape(parser)
    _add_methods(parser, "rand,orth,ghn3,ghn3-orth")
    add_ghns(parser)
    add_source(parser)
    parser.add_argument("--data", metavar="DIR", help="images by class; default: random ones")
    parser.add_argument("--layers", type=names, metavar="LIST", help="weights to show in full")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="default: 8")
    add_seed(parser)
    _add_outputs(parser)
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> None:
    _check_output(options)
    from ghn_init.analysis.diagnosis import diagnose
    from ghn_init.analysis.images import folder_batch, traced
    from ghn_init.analysis.initializations import PRETRAINED
    from ghn_init.methods.variants import split_methods
    from ghn_init.models import create_model, short_name

    model, _ = create_model(options.model, options.library, options.num_classes, options.seed)
    batch = None
    if options.data is not None:
        _, shape = traced(model, options.input_shape)
        batch = folder_batch(options.data, shape[-1], options.batch_size, options.seed)
    methods = split_methods(options.methods)
    trained = None
    if PRETRAINED in methods:
        trained, _ = create_model(options.model, options.library, pretrained=True)
    result = diagnose(
        model,
        methods,
        ghn=options.ghn,
        pretrained=trained,
        source=options.source,
        batch=batch,
        layers=options.layers,
        input_shape=options.input_shape,
        batch_size=options.batch_size,
        seed=options.seed,
        name=short_name(options.model),
        progress=True,
    )
    _finish(result, options)


def _add_diversity(commands: Commands) -> None:
    parser = commands.add_parser("diversity", help="how different tensors of one shape are")
    add_model(parser, several=True)
    add_num_classes(parser)
    _add_methods(parser, "ghn3")
    add_ghns(parser)
    parser.add_argument(
        "--shape", type=shape, action="append", metavar="64x3x7x7",
        help="may be repeated; default: the three most frequent",
    )  # fmt: skip
    add_seed(parser)
    _add_outputs(parser)
    parser.set_defaults(run=_diversity)


def _diversity(options: argparse.Namespace) -> None:
    _check_output(options)
    from ghn_init.analysis.tensor_diversity import diversity
    from ghn_init.methods.variants import split_methods

    result = diversity(
        _lazy_models(options),
        split_methods(options.methods),
        ghn=options.ghn,
        pretrained=_lazy_models(options, pretrained=True),
        shapes=options.shape,
        seed=options.seed,
        progress=True,
    )
    _finish(result, options)


def _add_embed(commands: Commands) -> None:
    parser = commands.add_parser("embed", help="map architectures as a hypernetwork sees them")
    add_model(parser, several=True)
    add_num_classes(parser)
    add_ghn(parser)
    parser.add_argument(
        "--color", default="size", metavar="COLUMN",
        help="size (default), family, or a column of --table",
    )  # fmt: skip
    parser.add_argument("--table", metavar="FILE", help="CSV or JSON with columns by model")
    parser.add_argument(
        "--embeddings", metavar="FILE", help="write each model's vector, and the features of its "
        "nodes, as a safetensors file",
    )  # fmt: skip
    _add_outputs(parser)
    parser.set_defaults(run=_embed)


def _embed(options: argparse.Namespace) -> None:
    _check_output(options)
    from ghn_init.analysis.embedding import embed
    from ghn_init.files import check_safetensors_name

    if options.embeddings is not None:
        check_safetensors_name(options.embeddings)
    result = embed(_lazy_models(options), options.ghn, **_colors(options), progress=True)
    if options.embeddings is not None:
        result.save_vectors(options.embeddings)
    _finish(result, options)


def _colors(options: argparse.Namespace) -> dict[str, Any]:
    """The column to color by; numbers as such if all of it are."""
    from ghn_init.analysis.measure.columns import as_numbers, column, read_columns
    from ghn_init.errors import GHNInitError

    if options.table is None:
        if options.color not in ("size", "family"):
            raise GHNInitError(f"--color {options.color} needs --table, a file with that column.")
        if options.color == "size":
            return {}
        return {"column": "family", "values": _lazy_models(options).families()}
    values: Any = column(read_columns(options.table), options.color, Path(options.table).name)
    with contextlib.suppress(GHNInitError):  # else they are names of groups
        values = as_numbers(values)
    return {"column": options.color, "values": values}


def _add_rank(commands: Commands) -> None:
    parser = commands.add_parser("rank", help="Kendall's tau of what is known before training")
    add_model(parser, several=True)
    add_num_classes(parser, default="as many as the data has")
    add_input_shape(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="images by class")
    parser.add_argument(
        "--table", required=True, metavar="FILE", help="the models' accuracies: CSV with a header "
        "and the models in its first column, or JSON: {model: accuracy}, {model: {column: value}}",
    )  # fmt: skip
    parser.add_argument("--accuracy", metavar="COLUMN", help="default: the only one")
    parser.add_argument("--ghn", metavar="CHECKPOINT", help="adds the accuracy it predicts")
    parser.add_argument("--metrics", type=names, metavar="LIST", help="default: all eight")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="default: 32")
    parser.add_argument("--images", type=int, default=512, metavar="N",
                        help="for the accuracy; default: 512")  # fmt: skip
    add_seed(parser)
    _add_outputs(parser)
    parser.set_defaults(run=_rank)


def _rank(options: argparse.Namespace) -> None:
    _check_output(options)
    from ghn_init.analysis.measure.columns import as_numbers, column, read_columns
    from ghn_init.analysis.measure.proxies import PROXIES
    from ghn_init.analysis.ranking import rank
    from ghn_init.images.items import find_items

    table = read_columns(options.table)
    if options.num_classes is None:
        options.num_classes = len(find_items(options.data, "train", bare=True).classes)
    result = rank(
        _lazy_models(options),
        as_numbers(column(table, options.accuracy, Path(options.table).name)),
        options.data,
        ghn=options.ghn,
        metrics=options.metrics or tuple(PROXIES),
        input_shape=options.input_shape,
        batch_size=options.batch_size,
        images=options.images,
        seed=options.seed,
        progress=True,
    )
    _finish(result, options)
