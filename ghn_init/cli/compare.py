"""The command `ghn-init compare`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn_init.cli.arguments import (
    Commands,
    Parser,
    add_ghns,
    add_json,
    add_model,
    add_noise,
    add_source,
)
from ghn_init.errors import GHNInitError

if TYPE_CHECKING:
    from torch import nn

    from ghn_init.compare.comparison import Comparison
    from ghn_init.compare.settings import FineTuning, Point
    from ghn_init.images.split import Split
    from ghn_init.methods.variants import Variant

_RATES = {"adamw": 1e-3, "sgd": 1e-2}
"""Learning rates, if none is given."""

_EPOCHS = 50
_VALIDATION = 1000
_PICTURE, _RESULTS = "curves.png", "results.json"


def add_parser(commands: Commands) -> None:
    """Add the command to `ghn-init`."""
    commands.add_parser(
        "compare",
        help="fine-tune a model from several initializations",
        description="Fine-tune one model from several initializations, under the same budget and "
        "on the same images; print final accuracies, and the steps to given ones.",
        fill=_fill,
    )


def _fill(parser: Parser) -> None:
    from ghn_init.cli.options import add_options
    from ghn_init.compare.settings import FineTuning
    from ghn_init.train.config import TrainConfig

    add_model(parser)
    _add_methods(parser)
    add_options(parser, TrainConfig, only=("data", "image_size"))
    _add_split(parser)
    _add_length(parser)
    add_options(parser, FineTuning, skip=("steps",))
    _add_points(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each method; "
                        "default: %(default)s")  # fmt: skip
    parser.add_argument("--reach", type=float, nargs="+", default=[], metavar="PERCENT",
                        help="accuracies to count the steps to")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the runs, so that the "
                        "same command goes on where it was stopped, and the picture")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or another; default: a GPU where there is one")
    add_json(parser)
    parser.set_defaults(run=_compare)


def _add_methods(parser: Parser) -> None:
    parser.add_argument(
        "--methods", default="rand,orth,ghn3,ghn3-orth", metavar="LIST",
        help="of `ghn-init list`, each NAME or, with settings, NAME:key=value,key=value, and "
        "+NAME for a second step; all: those that apply; default: %(default)s",
    )  # fmt: skip
    add_ghns(parser)
    add_source(parser)
    add_noise(parser)


def _add_split(parser: Parser) -> None:
    parser.add_argument("--labels", type=int, default=0, metavar="N", help="training images, "
                        "evenly over the classes; default: all")  # fmt: skip
    parser.add_argument(
        "--val", type=int, metavar="N", help="training images to choose hyperparameters on, of "
        "those that --labels leaves (of all, without --labels); default: "
        f"{_VALIDATION} if there is something to choose",
    )  # fmt: skip
    parser.add_argument("--subset-seed", type=int, default=0, metavar="S", help="of the choice of "
                        "training images; default: 0")  # fmt: skip
    parser.add_argument("--test-images", type=int, default=0, metavar="N", help="test on a random "
                        "subset, always the same; default: all")  # fmt: skip


def _add_length(parser: Parser) -> None:
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="of a run")
    length.add_argument("--epochs", type=float, default=_EPOCHS, help="of a run; default: "
                        "%(default)s")  # fmt: skip


def _add_points(parser: Parser) -> None:
    parser.add_argument(
        "--lr", type=float, nargs="+", metavar="RATE", help="of several, and of several weight "
        "decays, each method gets the best; default: 1e-3, of sgd 1e-2",
    )  # fmt: skip
    parser.add_argument("--widen", action="store_true", help="where a method is best at the lowest "
                        "or highest rate, go on beyond it")  # fmt: skip
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[1e-2], metavar="W",
                        help="default: 1e-2")  # fmt: skip


def _compare(options: argparse.Namespace) -> None:
    from ghn_init.cli.options import from_options
    from ghn_init.compare.run import compare
    from ghn_init.compare.settings import FineTuning
    from ghn_init.models import create_model, short_name
    from ghn_init.train.distributed import start

    methods, pretrained = _with_weights(options, _methods(options))
    points = _points(options)
    if not 0 < options.epochs < math.inf:
        raise GHNInitError(f"epochs is {options.epochs}: give a number above 0.")
    how = from_options(FineTuning, options, steps=1 if options.steps is None else options.steps)
    with start(options.device) as world:
        data = _data(options, len(points) > 1, world.device)
        how = _length(options, how, len(data.train.labels))
        classes = len(data.train.classes)
        result = compare(
            lambda seed: create_model(options.model, options.library, classes, seed)[0],
            methods,
            data,
            how,
            points,
            seeds=options.seeds,
            ghn=options.ghn,
            source=options.source,
            pretrained=pretrained,
            reach=options.reach,
            results=_results_file(options.out),
            name=short_name(options.model),
            progress=True,
            widen=options.widen,
        )
    print(result.to_json() if options.json else result.table())
    if options.out is not None:
        _save(result, options.out)


def _methods(options: argparse.Namespace) -> tuple[Variant | str, ...]:
    from ghn_init.compare.choice import ALL
    from ghn_init.methods.variants import parse_methods, split_methods

    parts = split_methods(options.methods)
    named = ",".join(part for part in parts if part != ALL)
    settings = {"noise": options.noise, "orth_start": options.orth_start}
    found = parse_methods(named, **settings) if named or ALL not in parts else ()
    return (*found, ALL) if ALL in parts else found


def _with_weights(
    options: argparse.Namespace, methods: tuple[Variant | str, ...]
) -> tuple[tuple[Variant | str, ...], nn.Module | None]:
    """The model's published weights, if a method takes them; where they cannot be had, the others.

    The reason is one line on stderr.
    """
    from ghn_init.compare.choice import ALL
    from ghn_init.methods.selection import PRETRAINED
    from ghn_init.models import create_model

    others = tuple(m for m in methods if isinstance(m, str) or m.method is not PRETRAINED)
    if len(others) == len(methods) and ALL not in methods:
        return methods, None
    try:
        return methods, create_model(options.model, options.library, pretrained=True)[0]
    except GHNInitError as error:
        if not others:
            raise
        print(f"pretrained is left out: {error}", file=sys.stderr)
        return others, None


def _points(options: argparse.Namespace) -> list[Point]:
    from ghn_init.compare.settings import Point

    rates = options.lr or [_RATES.get(options.optimizer, 1e-3)]
    return [Point(rate, decay) for rate in rates for decay in options.weight_decay]


def _data(options: argparse.Namespace, choose: bool, device: Any) -> Split:
    from ghn_init.images.split import load_split

    validation = _VALIDATION if options.val is None else options.val
    return load_split(
        options.data,
        options.image_size,
        options.labels,
        validation if choose else 0,
        options.test_images,
        options.subset_seed,
        device,
        progress=True,
    )


def _length(options: argparse.Namespace, how: FineTuning, images: int) -> FineTuning:
    """The budget for a number of images, on which the length of an epoch depends."""
    from dataclasses import replace

    from ghn_init.images.batches import steps_per_epoch

    if options.steps is not None:
        return how
    return replace(how, steps=round(options.epochs * steps_per_epoch(images, how.batch_size)))


def _results_file(folder: Path | None) -> Path | None:
    """The file of the runs, in a folder that is made if need be."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GHNInitError(f"cannot use the folder {folder}: {error.strerror}.") from error
    return folder / _RESULTS


def _save(result: Comparison, folder: Path) -> None:
    """Draw the picture, or say why there is none; on stderr, beside the table or JSON."""
    from ghn_init.analysis.extra import plot_extra

    try:
        plot_extra("matplotlib.figure")
    except GHNInitError as error:
        print(f"written to {folder / _RESULTS}; no picture: {error}", file=sys.stderr)
        return
    result.save(folder / _PICTURE)
    print(f"written to {folder}: {_RESULTS}, {_PICTURE}", file=sys.stderr)
