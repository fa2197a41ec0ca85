"""Steps per second of the trainer, and where the time goes.

    python examples/benchmarks/train_steps.py --precision bf16 --steps 8
    python examples/benchmarks/train_steps.py --device cuda --precision bf16 --channels 32 64 96 128
    python examples/benchmarks/train_steps.py --published deepnets --channels 32 --meta-batch 8

Architectures are drawn on the fly and images are noise, so nothing has to be downloaded. Times are
those of the process's CPU where it computes on the CPU (other work on the machine does not count
then, but for what it does to the caches), and elapsed ones on a GPU. `--convolutions` times our
depthwise convolutions against PyTorch's instead.

`--published FOLDER` trains the same hypernetwork with the published trainer and with ours, in one
run: from the same weights, on the same networks of the official files in that folder, the same
images and one width. The packages `ghn3` and `ppuda` have to be importable.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import table
from torch import nn

from ghn_init import load_ghn
from ghn_init.images import Batch
from ghn_init.train import (
    Architecture,
    MetaBatches,
    Network,
    Timer,
    TrainConfig,
    Widths,
    depthwise_conv,
    gradients,
    initialize,
    load_nets,
    sample,
)


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    if args.convolutions:
        time_convolutions(clock)
        return
    if args.published is not None:
        against_published(args, clock)
        return
    config = configuration(args)
    timer = measure(config, device, args.warmup, clock)
    total = sum(timer.seconds.values())
    print(f"{args.precision} {device}: {total / args.steps:.3f} s a step, "
          f"{args.steps / total:.3f} steps/s")  # fmt: skip
    for name, share in timer.shares().items():
        print(f"  {name:13} {100 * share:5.1f}%")


def configuration(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        nets="",
        data="",
        steps=args.steps,
        meta_batch=args.meta_batch,
        batch_size=args.batch_size,
        hidden_size=args.hidden_size,
        precision=args.precision,
        dropout=0.0,
        widths=Widths(tuple(args.channels), (64, 128), 1_000_000),
    )


def measure(
    config: TrainConfig,
    device: torch.device,
    warmup: int,
    clock: Callable[[], float],
    classes: int = 10,
) -> Timer:
    """Seconds of each part of `config.steps` training steps, all together; warm-up is left out."""
    nets = [sample("train", i) for i in range(config.meta_batch * 64)]
    meta_batches = MetaBatches(
        nets, config.meta_batch, config.widths, 0, classes, config.image_size
    )
    ghn = initialize(config, classes).to(device)
    optimizer = torch.optim.AdamW(ghn.parameters(), config.lr, fused=True)
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    images = torch.randn(shape, device=device).permute(0, 3, 1, 2)
    batch = Batch(images, torch.randint(classes, (config.batch_size,), device=device))
    timer = Timer(device, exact=True, clock=clock)
    for step in range(warmup + config.steps):
        if step == warmup:
            timer.seconds.clear()
        with timer.part("build"):
            networks = meta_batches[step]
        gradients(ghn, networks, batch, config, step, timer)
        with timer.part("update"):
            torch.nn.utils.clip_grad_norm_(ghn.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
    return timer


def against_published(args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Seconds and losses of the published trainer and of ours, step by step."""
    torch.manual_seed(0)
    config = replace(configuration(args), dropout=0.5)  # as the published target networks have it
    published = PublishedTrainer(args, config)
    ours = OurTrainer(published.ghn, config)
    nets = [n for n in load_nets(args.published, "train") if isinstance(n, Architecture)]
    rows, ratios = [], []
    for step in range(args.warmup + args.steps):
        chosen = torch.randperm(len(nets))[: args.meta_batch].tolist()
        images = torch.randn(args.batch_size, 3, config.image_size, config.image_size)
        batch = Batch(images, torch.randint(10, (args.batch_size,)))
        theirs = published.step(chosen, batch, clock)
        mine = ours.step([nets[i] for i in chosen], batch, step, clock)
        rows.append([step, *theirs, *mine, theirs[0] / mine[0]])
        ratios.append(theirs[0] / mine[0])
    print(
        table(
            [
                "step",
                "published, s",
                "loss",
                f"ours, {config.precision}, s",
                "loss",
                "times faster",
            ],
            rows,
        )
    )
    print(
        f"median without the warm-up: {statistics.median(ratios[args.warmup :]):.1f} times faster"
    )


class PublishedTrainer:
    """The published trainer with its settings for CIFAR-10.

    Arguments:
        args: of the command.
        config: ours, which its settings are taken from.
    """

    def __init__(self, args: argparse.Namespace, config: TrainConfig) -> None:
        from ghn3 import GHN3, Trainer
        from ghn3.deepnets1m import DeepNets1MDDP

        channels, sizes = args.channels[0], config.ghn(10)
        with contextlib.redirect_stdout(io.StringIO()):
            self.nets = DeepNets1MDDP(nets_dir=str(args.published), virtual_edges=50,
                                      num_ch=(channels, channels), fc_dim=(64, 64),
                                      wider_nets=False)  # fmt: skip
            self.ghn = GHN3(sizes.max_shape, 10, sizes.hidden_size, sizes.heads, sizes.layers,
                            weight_norm=True, ve=True, layernorm=True)  # fmt: skip
            self.trainer = Trainer(
                self.ghn, "adamw", {"lr": config.lr, "weight_decay": config.weight_decay}, "cosine",
                n_batches=1000, device="cpu", predparam_wd=config.gamma, epochs=1,
                grad_clip=config.clip)  # fmt: skip

    def step(
        self, chosen: Sequence[int], batch: Batch, clock: Callable[[], float]
    ) -> tuple[float, float]:
        """Seconds of a step, without those for making the networks; and its loss."""
        from ghn3.graph import GraphBatch

        graphs = GraphBatch([self.nets[i] for i in chosen], dense=True)
        self.trainer.reset_metrics(0)
        start = clock()
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = self.trainer.update(batch.images, batch.labels, graphs=graphs)
        return clock() - start, float(metrics["loss"].avg)


class OurTrainer:
    """Ours, from the weights of the published hypernetwork."""

    def __init__(self, ghn: nn.Module, config: TrainConfig) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ghn.pt"
            torch.save({"state_dict": ghn.state_dict()}, path)
            self.ghn = load_ghn(path, trainable=True)
        self.config = config
        self.optimizer = torch.optim.AdamW(
            self.ghn.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
        )

    def step(
        self, nets: Sequence[Architecture], batch: Batch, step: int, clock: Callable[[], float]
    ) -> tuple[float, float]:
        """Seconds of a step, without those for making the networks; and its loss."""
        config = self.config
        channels, fc_dim = config.widths.channels[0], config.widths.fc_dims[0]
        networks = [
            (place, Network(net.resized(channels, fc_dim), 10, config.image_size, config.dropout))
            for place, net in enumerate(nets)
        ]
        start = clock()
        totals = gradients(self.ghn, networks, batch, config, step, Timer(torch.device("cpu")))
        torch.nn.utils.clip_grad_norm_(self.ghn.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock() - start, totals.metrics(len(networks))["loss"]


def time_convolutions(clock: Callable[[], float], repeats: int = 5) -> None:
    """Forward and backward pass of depthwise convolutions in bfloat16: PyTorch's own, and ours."""
    x, channels = torch.randn(64, 64, 16, 16, dtype=torch.bfloat16, requires_grad=True), 64
    rows = []
    for kernel, dilation in ((3, 1), (5, 1), (3, 2), (5, 2)):
        weight = torch.randn(channels, 1, kernel, kernel, dtype=x.dtype, requires_grad=True)
        pad = (kernel - 1) * dilation // 2
        seconds = []
        for convolve in (
            lambda w=weight, p=pad, d=dilation: F.conv2d(x, w, None, 1, p, d, groups=channels),
            lambda w=weight, d=dilation: depthwise_conv(x, w, 1, d),
        ):
            convolve().sum().backward()
            start = clock()
            for _ in range(repeats):
                convolve().sum().backward()
            seconds.append((clock() - start) / repeats)
        rows.append([f"{kernel}x{kernel}, dilation {dilation}", *(1000 * s for s in seconds)])
    print(table(["milliseconds", "PyTorch", "depthwise_conv"], rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--meta-batch", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--convolutions", action="store_true")
    parser.add_argument("--published", type=Path, metavar="FOLDER", help="with the official files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
