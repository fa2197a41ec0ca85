"""Steps per second of the trainer, and where the time goes.

    python examples/benchmarks/train_steps.py --precision bf16 --steps 8
    python examples/benchmarks/train_steps.py --device cuda --precision bf16 --channels 32 64 96 128

Architectures are drawn on the fly and images are noise, so nothing has to be downloaded. Times are
those of the process's CPU where it computes on the CPU (other work on the machine does not count
then, but for what it does to the caches), and elapsed ones on a GPU. `--convolutions` times our
depthwise convolutions against PyTorch's instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import table

from ghn_init.images import Batch
from ghn_init.train import (
    MetaBatches,
    Timer,
    TrainConfig,
    Widths,
    depthwise_conv,
    gradients,
    initialize,
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
    config = TrainConfig(
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
    timer = measure(config, device, args.warmup, clock)
    total = sum(timer.seconds.values())
    print(f"{args.precision} {device}: {total / args.steps:.3f} s a step, "
          f"{args.steps / total:.3f} steps/s")  # fmt: skip
    for name, share in timer.shares().items():
        print(f"  {name:13} {100 * share:5.1f}%")


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
    return parser.parse_args()


if __name__ == "__main__":
    main()
