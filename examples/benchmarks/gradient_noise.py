"""Where the noise of a hypernetwork's gradient comes from: images, networks, or both together.

    python examples/benchmarks/gradient_noise.py --nets nets --data imagefolder:cifar10

The gradient of every pair of a network and a batch of images is taken apart by a two-way analysis
of variance. `images` is what a batch does to all networks alike: a larger meta-batch does not help
against it if all its networks see the same images, `--own-images` does. `both` is averaged out by
either, `networks` by a larger meta-batch alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _common import table
from torch import Tensor

from ghn_init import GHN, load_ghn
from ghn_init.images import Batch, load_images
from ghn_init.train import MetaBatches, Timer, TrainConfig, Widths, gradients, load_nets

PARTS = ("decoder.conv.2", "decoder.conv.0", "decoder.fc", "gnn", "")
"""Prefixes of parameters' names; the last one is for all others."""


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    ghn = load_ghn(args.ghn).requires_grad_(True)
    config = TrainConfig(
        nets=str(args.nets),
        data=args.data,
        steps=1,
        meta_batch=1,
        batch_size=args.batch_size,
        hidden_size=ghn.config.hidden_size,
        layers=ghn.config.layers,
        precision=args.precision,
        dropout=0.0,
        network_clip=1.0,
        widths=Widths(tuple(args.channels), (64, 128, 256), args.max_params),
    )
    images = load_images(config.data, "train", config.image_size, args.holdout)
    batches = list(images.train_batches(config.batch_size, 0, 0, args.batches, "mirror"))
    nets = load_nets(args.nets, "train")
    meta_batches = MetaBatches(nets, 1, config.widths, 0, len(images.classes), config.image_size)
    found = take(ghn, meta_batches, batches, config, args.networks)
    rows = [[part or "others", *variances(grads)] for part, grads in found.items()]
    print(f"batches of {args.batch_size}; {args.networks} networks, {args.batches} batches")
    print(table(["variance by", "images", "networks", "both"], rows))


def take(
    ghn: GHN, meta_batches: MetaBatches, batches: list[Batch], config: TrainConfig, networks: int
) -> dict[str, Tensor]:
    """For each part of the hypernetwork, `(networks, batches, parameters)` gradients."""
    found: dict[str, list[list[Tensor]]] = {part: [] for part in PARTS}
    for step in range(networks):
        network = meta_batches[step]
        for row in found.values():
            row.append([])
        for batch in batches:
            ghn.zero_grad()
            gradients(ghn, network, batch, config, step, Timer(ghn.device))
            for part, grads in by_part(ghn).items():
                found[part][-1].append(grads)
    return {part: torch.stack([torch.stack(row) for row in rows]) for part, rows in found.items()}


def by_part(ghn: GHN) -> dict[str, Tensor]:
    """The gradient, cut into parts."""
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in ghn.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts[next(part for part in PARTS if name.startswith(part))].append(grad.flatten())
    return {part: torch.cat(grads) for part, grads in parts.items()}


def variances(grads: Tensor) -> list[float]:
    """By images, by networks and by both together, of `(networks, batches, parameters)`."""
    n, k = grads.shape[:2]
    by_network, by_batch, mean = grads.mean(1), grads.mean(0), grads.mean((0, 1))
    rest = grads - by_network[:, None] - by_batch + mean
    both = rest.square().sum().item() / ((n - 1) * (k - 1))
    images = (by_batch - mean).square().sum().item() / (k - 1) - both / n
    networks = (by_network - mean).square().sum().item() / (n - 1) - both / k
    return [images, networks, both]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--ghn", default="embedded", metavar="CHECKPOINT")
    parser.add_argument("--nets", type=Path, required=True, help="folder of architectures")
    parser.add_argument("--data", required=True, help="folder, or torchvision:NAME:PATH")
    parser.add_argument("--holdout", type=int, default=5000)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--max-params", type=int, default=1_000_000)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
