"""Steps per second of the trainer, and where the time goes.

    python examples/benchmarks/train_steps.py --precision bf16 --steps 8
    python examples/benchmarks/train_steps.py --device cuda --precision bf16 --channels 32 64 96 128

Architectures are drawn on the fly and images are noise, so nothing has to be downloaded. Times are
those of the process's CPU where it computes on the CPU (other work on the machine does not count
then, but for what it does to the caches), and elapsed ones on a GPU. `--plain` uses PyTorch's own
backward pass of depthwise convolutions and fused attention, for comparison.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F

from ghn_init.train import step as training_step
from ghn_init.train.config import TrainConfig
from ghn_init.train.init import initialize
from ghn_init.train.networks import depthwise, layers
from ghn_init.train.networks.generate import sample
from ghn_init.train.sampling import MetaBatches, Widths
from ghn_init.train.step import Timer, gradients


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
        training_step.time.perf_counter = time.process_time  # type: ignore[attr-defined]
    if args.plain:
        use_plain_operators()
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
    nets = [sample("train", i) for i in range(config.meta_batch * 64)]
    meta_batches = MetaBatches(nets, config.meta_batch, config.widths, 0, 10, 32)
    ghn = initialize(config, 10).to(device)
    optimizer = torch.optim.AdamW(ghn.parameters(), config.lr, fused=True)
    images = torch.randn(config.batch_size, 32, 32, 3, device=device).permute(0, 3, 1, 2)
    batch = images, torch.randint(10, (config.batch_size,), device=device)
    timer = Timer(device, exact=True)
    for step in range(args.warmup + args.steps):
        if step == args.warmup:
            timer.seconds.clear()
        with timer.part("build"):
            networks = meta_batches[step]
        gradients(ghn, networks, batch, config, step, timer)
        with timer.part("update"):
            torch.nn.utils.clip_grad_norm_(ghn.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
    total = sum(timer.seconds.values())
    print(f"{args.precision} {device}: {total / args.steps:.3f} s a step, "
          f"{args.steps / total:.3f} steps/s")  # fmt: skip
    for name, share in timer.shares().items():
        print(f"  {name:13} {100 * share:5.1f}%")


def use_plain_operators() -> None:
    """PyTorch's own operators instead of `depthwise_conv` and explicit attention."""

    class Attention(layers.Attention):
        def __call__(self, params: layers.Params, *inputs: torch.Tensor) -> torch.Tensor:
            batch, tokens, width = inputs[0].shape
            heads = (batch, tokens, 3, layers.HEADS, width // (3 * layers.HEADS))
            q, k, v = inputs[0].view(heads).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v)
            return out.transpose(1, 2).reshape(batch, tokens, width // 3)

    layers.depthwise_conv = depthwise._forward
    layers.Attention.__call__ = Attention.__call__  # type: ignore[method-assign]


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
    parser.add_argument("--plain", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
