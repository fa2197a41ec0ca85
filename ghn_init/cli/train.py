"""`ghn-init train`: make-nets, run, eval."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ghn_init.cli.deferred import DeferredParser

_EPOCHS = 75
"""Of a run, as in the GHN-3 paper (Section 5)."""

_DATA = ("data", "image_size", "holdout")


def add_parser(commands: Any) -> None:
    """Add the command `train` and its own commands.

    Arguments:
        commands: what `ArgumentParser.add_subparsers` gave.
    """
    parser = commands.add_parser(
        "train",
        help="train a hypernetwork, and what belongs to that",
        description="Train a graph hypernetwork on images and random architectures.",
    )
    own = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=DeferredParser)
    own.add_parser("make-nets", help="draw random architectures of a split",
                   fill=_fill_make_nets)  # fmt: skip
    own.add_parser("run", help="train a hypernetwork, or go on with a run", fill=_fill_run)
    own.add_parser("eval", help="accuracy of predicted parameters, without any training",
                   fill=_fill_eval)  # fmt: skip


def _fill_make_nets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="train", help="train, val, test, wide, deep, dense, "
                        "bnfree, or all of them but train: eval; search")  # fmt: skip
    parser.add_argument("--space", default="deepnets", help="deepnets, zoo (members of real "
                        "families; splits train, val, test, sizes and heldout), or vits (wide; "
                        "train, val and test)")  # fmt: skip
    parser.add_argument("--count", type=int, required=True, help="how many (of each split)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.set_defaults(run=_make_nets)


def _make_nets(options: argparse.Namespace) -> None:
    from ghn_init.train.networks.generate import make_nets, splits_of

    for split in splits_of(options.space, options.split):
        print(make_nets(split, options.count, options.out, options.seed, options.workers))


def _fill_run(parser: argparse.ArgumentParser) -> None:
    from ghn_init.cli.options import add_options
    from ghn_init.train.config import Schedule, TrainConfig

    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a run that was "
                        "stopped goes on in it")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=_EPOCHS, help="passes over the images "
                        "(default: %(default)s)")  # fmt: skip
    length.add_argument("--max-steps", type=int, help="length of the run in steps")
    parser.add_argument("--precision", help="fp32, or bf16 for autocast (default: bf16 on GPUs "
                        "that have it, else fp32)")  # fmt: skip
    add_options(parser, TrainConfig, skip=("steps", "precision"))
    add_options(parser, Schedule, skip=("quiet",))
    _add_device(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import torch

    from ghn_init.cli.options import from_options
    from ghn_init.train.config import Schedule, TrainConfig
    from ghn_init.train.distributed import start
    from ghn_init.train.loop import train

    if options.threads is None and "OMP_NUM_THREADS" not in os.environ:
        options.threads = 0
    schedule = from_options(Schedule, options)
    with start(options.device) as world:
        if options.precision is None:
            on_gpu = world.device.type == "cuda" and torch.cuda.is_bf16_supported()
            options.precision = "bf16" if on_gpu else "fp32"
        config = from_options(TrainConfig, options, steps=_steps(options))
        path = train(config, options.out, world, schedule)
        if world.is_main:
            print(path)


def _steps(options: argparse.Namespace) -> int:
    """The length of the run; with epochs it depends on the number of images."""
    from ghn_init.cli.options import from_options
    from ghn_init.images.batches import steps_per_epoch
    from ghn_init.images.split import count_images
    from ghn_init.train.config import TrainConfig

    if options.max_steps is not None:
        return int(options.max_steps)
    config = from_options(TrainConfig, options, steps=1)
    count = count_images(config.data) - config.holdout
    return int(options.epochs) * steps_per_epoch(count, config.images_per_step)


def _fill_eval(parser: argparse.ArgumentParser) -> None:
    from ghn_init.cli.options import add_options
    from ghn_init.train.config import Evaluation, TrainConfig

    parser.add_argument("--ghn", required=True, help="checkpoint, by name or path")
    parser.add_argument("--nets", type=Path, required=True, help="folder of architectures")
    parser.add_argument("--split", nargs="+", default=["test"], help="of the architectures")
    parser.add_argument("--num-nets", type=int, help="only the first so many")
    add_options(parser, TrainConfig, only=_DATA)
    parser.add_argument("--images", default="test", choices=("test", "holdout"))
    parser.add_argument("--num-images", type=int, help="only so many, in a fixed random order")
    add_options(parser, Evaluation, skip=("quiet",))
    parser.add_argument("-o", "--out", type=Path, help="folder for accuracies by network; resumes")
    _add_device(parser)
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> None:
    from ghn_init.cli.options import from_options
    from ghn_init.images.split import first, load_images
    from ghn_init.loading.load import load_ghn
    from ghn_init.train.config import Evaluation
    from ghn_init.train.distributed import start
    from ghn_init.train.evaluation import evaluate
    from ghn_init.train.networks.nets import load_nets
    from ghn_init.train.threads import use

    how = from_options(Evaluation, options)
    with start(options.device) as world:
        if world.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            use(0)
        ghn = load_ghn(options.ghn, world.device)
        images = load_images(
            options.data,
            options.images,
            options.image_size,
            options.holdout,
            world.device,
            progress=True,
        )
        if options.num_images is not None:
            images = first(images, options.num_images)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        for split in options.split:
            nets = load_nets(options.nets, split, options.num_nets)
            file = options.out / f"{split}.json" if options.out else None
            print(evaluate(ghn, nets, images, split, how, file).summary(), flush=True)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or another (default: a GPU where there is one)")
