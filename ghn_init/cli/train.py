"""`ghn-init train`: make-nets, run, eval."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ghn_init.errors import GHNInitError
from ghn_init.images.extra import require_extra


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `train` and its own commands; `args.run(args)` runs what was chosen."""
    parser = subparsers.add_parser(
        "train",
        help="train a hypernetwork, and what belongs to that",
        description="Train a graph hypernetwork on images and random architectures.",
    )
    add_commands(parser)


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands of `ghn-init train`, also for `python -m ghn_init.train`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_make_nets(commands)
    _add_run(commands)
    _add_eval(commands)


def main(arguments: list[str] | None = None) -> int:
    """`python -m ghn_init.train`, for torchrun; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ghn_init.train", description=__doc__)
    add_commands(parser)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except GHNInitError as error:
        print(f"ghn-init: error: {error}", file=sys.stderr)
        return 1
    return 0


# -- make-nets


def _add_make_nets(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    parser = commands.add_parser(
        "make-nets", help="draw random architectures of a split of DeepNets-1M"
    )
    parser.add_argument("--split", default="train", help="train, val, test, wide, deep, dense, "
                        "bnfree or all of them but train: eval")  # fmt: skip
    parser.add_argument("--count", type=int, required=True, help="how many (of each split)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (one a core)")
    parser.set_defaults(run=_make_nets)


def _make_nets(args: argparse.Namespace) -> None:
    from ghn_init.train.networks.generate import SPLITS, make_nets

    splits = [s for s in SPLITS if s != "train"] if args.split == "eval" else [args.split]
    for split in splits:
        print(make_nets(split, args.count, args.out, args.seed, args.workers))


# -- run


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="train a hypernetwork, or go on with a run")
    parser.add_argument("--nets", required=True, help="folder of architectures")
    _add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, help="passes over the images")
    length.add_argument("--max-steps", type=int, help="steps")
    parser.add_argument("--num-nets", type=int, help="use only the first so many architectures")
    parser.add_argument("--start-from", metavar="CHECKPOINT", help="train this one further")
    parser.add_argument("--arch", default="ghn3", help="ghn3, ghn2 or mlp (%(default)s)")
    parser.add_argument("--hidden-size", type=int, default=64, metavar="D")
    parser.add_argument("--layers", type=int, default=3, metavar="L")
    parser.add_argument("--heads", type=int, default=0, metavar="K", help="8, or 16 for D > 64")
    parser.add_argument("--meta-batch", type=int, default=8, metavar="M")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B")
    parser.add_argument("--own-images", action="store_true",
                        help="B images for each network (the same B for all M)")  # fmt: skip
    parser.add_argument("--augment", default="crop", help="crop (and mirror), mirror or none")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--warmup", type=int, default=500, help="steps (%(default)s)")
    parser.add_argument("--cooldown", type=int, default=0, metavar="STEPS",
                        help="constant rate, but for so many last steps (cosine)")  # fmt: skip
    parser.add_argument("--parametrization", default="standard", help="standard or mup")
    parser.add_argument("--clip", type=float, default=5.0, help="norm of the gradient")
    parser.add_argument("--network-clip", type=float, default=0.0, metavar="NORM",
                        help="of the gradient by one network's parameters (any)")  # fmt: skip
    parser.add_argument("--gamma", type=float, default=3e-5, help="of Eq. 10 (%(default)s)")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.5, help="in the networks' classifiers")
    parser.add_argument("--channels", type=int, nargs="+", help="widths to draw (32 48 ... 128)")
    parser.add_argument("--fc-dims", type=int, nargs="+", help="widths to draw (64 128 192 256)")
    parser.add_argument("--max-params", type=int, help="of a network, in drawing its width (2e6)")
    parser.add_argument("--curriculum", type=int, default=0, metavar="STEPS",
                        help="in which networks grow from the smallest tenth to all")  # fmt: skip
    parser.add_argument("--rare-share", type=float, default=0.0, metavar="P",
                        help="chance of nets without norms or global pooling")  # fmt: skip
    parser.add_argument("--precision", help="fp32 or bf16 (bf16 on GPUs that have it, else fp32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=int, default=20, help="steps without a finite loss")
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--workers", type=int, default=0, help="processes that build networks")
    parser.add_argument("--profile", action="store_true", help="exact shares of time on a GPU")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    require_extra("ghn-init train")
    import torch

    from ghn_init.images.data import count_images, steps_per_epoch
    from ghn_init.train.config import TrainConfig
    from ghn_init.train.distributed import start
    from ghn_init.train.loop import Schedule, train
    from ghn_init.train.sampling import Widths

    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    steps = args.max_steps
    if steps is None:
        count = count_images(args.data) - args.holdout
        networks = args.meta_batch if args.own_images else 1
        steps = args.epochs * steps_per_epoch(count, args.batch_size * networks)
    default = Widths()
    widths = Widths(
        tuple(sorted(args.channels or default.channels)),
        tuple(sorted(args.fc_dims or default.fc_dims)),
        args.max_params or default.max_params,
    )
    with start(args.device) as world:
        on_gpu = world.device.type == "cuda" and torch.cuda.is_bf16_supported()
        config = TrainConfig(
            nets=args.nets,
            data=args.data,
            steps=steps,
            image_size=args.image_size,
            holdout=args.holdout,
            num_nets=args.num_nets,
            start_from=args.start_from,
            arch=args.arch,
            hidden_size=args.hidden_size,
            layers=args.layers,
            heads=args.heads,
            meta_batch=args.meta_batch,
            batch_size=args.batch_size,
            own_images=args.own_images,
            augment=args.augment,
            lr=args.lr,
            weight_decay=args.weight_decay,
            warmup=args.warmup,
            cooldown=args.cooldown,
            parametrization=args.parametrization,
            clip=args.clip,
            network_clip=args.network_clip,
            gamma=args.gamma,
            label_smoothing=args.label_smoothing,
            dropout=args.dropout,
            precision=args.precision or ("bf16" if on_gpu else "fp32"),
            widths=widths,
            curriculum=args.curriculum,
            rare_share=args.rare_share,
            seed=args.seed,
            patience=args.patience,
        )
        how = Schedule(args.save_every, args.log_every, args.workers, args.profile)
        path = train(config, args.out, world, how)
        if world.is_main:
            print(path)


# -- eval


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eval", help="accuracy of predicted parameters, without any training"
    )
    parser.add_argument("--ghn", required=True, help="checkpoint, by name or path")
    parser.add_argument("--nets", type=Path, required=True, help="folder of architectures")
    parser.add_argument("--split", nargs="+", default=["test"], help="of the architectures")
    parser.add_argument("--num-nets", type=int, help="only the first so many")
    _add_data(parser)
    parser.add_argument("--images", default="test", choices=("test", "holdout"))
    parser.add_argument("--num-images", type=int, help="only so many, in a fixed random order")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16 (%(default)s)")
    parser.add_argument("--control", type=int, default=16, metavar="BATCHES",
                        help="images of the randomly initialized control; 0: none")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="folder for accuracies by network; resumes")
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> None:
    require_extra("ghn-init train")
    from ghn_init.images.data import first, load_images
    from ghn_init.loading.load import load_ghn
    from ghn_init.train.distributed import start
    from ghn_init.train.evaluation import Evaluation, evaluate
    from ghn_init.train.networks.nets import load_nets

    with start(args.device) as world:
        ghn = load_ghn(args.ghn, world.device)
        images = load_images(args.data, args.images, args.image_size, args.holdout, world.device)
        if args.num_images:
            images = first(images, args.num_images)
        how = Evaluation(args.batch_size, args.precision, args.control, args.seed)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
        for split in args.split:
            nets = load_nets(args.nets, split, args.num_nets)
            file = args.out / f"{split}.json" if args.out else None
            print(evaluate(ghn, nets, images, split, how, file).summary(), flush=True)


# -- both


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="imagefolder:PATH or torchvision:NAME:PATH")
    parser.add_argument("--image-size", type=int, default=32, metavar="PIXELS")
    parser.add_argument("--holdout", type=int, default=0, help="training images held out")
    parser.add_argument("--device", help="cpu, cuda or another (a GPU where there is one)")
