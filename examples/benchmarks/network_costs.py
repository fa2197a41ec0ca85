"""The time of a network's training step, what predicts it, and how long processes wait.

    python examples/benchmarks/network_costs.py --count 20

Networks of both spaces are timed one by one: prediction, forward and backward pass in float32, on
one thread, by the CPU's clock. The times are fitted by nodes and multiplications. Then meta-batches
are drawn from the networks and shared out among processes: by nodes, by `MetaBatches.cost`, and by
the times themselves, which cannot be known. A process takes the sum of its networks' times and
waits for the slowest; so waiting is computed from the times, not measured.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _common import table

from ghn_init.hypernetwork import GHN
from ghn_init.images import Batch
from ghn_init.train import (
    MetaBatches,
    Net,
    Timer,
    TrainConfig,
    balance,
    build_network,
    gradients,
    initialize,
    sample,
    sample_zoo,
)

SPACES = {"DeepNets-1M": (0,), "zoo": (1,), "both": (0, 1)}


@dataclass(frozen=True)
class Timed:
    """A network, the seconds of its step, its nodes, and what we take for its cost."""

    seconds: float
    nodes: int
    cost: float
    macs: float


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    config = TrainConfig("", 1, nets="", meta_batch=1, batch_size=args.batch_size, dropout=0.0)
    ghn = initialize(config, 10)
    batch = Batch(torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,)))
    nets = drawn(config, args.count, args.seed)
    timed = [[measured(net, ghn, batch, config, args.repeat) for net in kind] for kind in nets]
    per_node, per_mac = fitted([one for kind in timed for one in kind])
    print(f"seconds: {per_node:.2e} a node, {per_mac:.2e} a multiplication for an image; a node is "
          f"{per_node / per_mac:.1e} of these")  # fmt: skip
    zoo = timed[1]
    print(f"multiplications a node in the zoo: {sum(n.macs / n.nodes for n in zoo) / len(zoo):.1e}")
    rows: list[list[object]] = []
    for name, kinds in SPACES.items():
        some = [one for kind in kinds for one in timed[kind]]
        for by in ("nodes", "cost", "seconds"):
            waits = [waiting(some, by, processes, args) for processes in (2, 4)]
            rows.append([name, by, *(f"{100 * wait:.1f}%" for wait in waits)])
    print(table(["networks", "shared out by", "waiting, 2 processes", "4 processes"], rows))


def drawn(config: TrainConfig, count: int, seed: int) -> list[list[Net]]:
    """So many networks of each space, with widths as in training."""
    rng = random.Random(seed)
    cells = [sample("train", i, seed) for i in range(count)]
    wide: list[Net] = [
        net.resized(rng.choice(config.widths.allowed(net)), rng.choice(config.widths.fc_dims))
        for net in cells
    ]
    return [wide, [sample_zoo("zoo-train", i, seed) for i in range(count)]]


def measured(net: Net, ghn: GHN, batch: Batch, config: TrainConfig, repeat: int) -> Timed:
    """A network's step: the fastest of some."""
    network, seconds = build_network(net, 10, 32), []
    for _ in range(repeat):
        timer = Timer(torch.device("cpu"), clock=time.process_time)
        gradients(ghn, [(0, network)], batch, config, 0, timer)
        ghn.zero_grad()
        seconds.append(sum(timer.seconds.values()))
    macs: float = getattr(network, "macs", 0.0) or getattr(net, "macs", 0.0)
    cost = MetaBatches([net], 1, config.widths, 0, 10, 32).cost(net)
    return Timed(min(seconds), len(network.graph), cost, macs)


def fitted(timed: Sequence[Timed]) -> tuple[float, float]:
    """Seconds of a node and of a multiplication: least squares, large times weighing less."""
    seconds = torch.tensor([one.seconds for one in timed], dtype=torch.float64)
    known = torch.tensor([[one.nodes, one.macs] for one in timed], dtype=torch.float64)
    weights, scale = seconds**-0.5, known.amax(0)
    solved = torch.linalg.lstsq(known / scale * weights[:, None], seconds * weights).solution
    per_node, per_mac = (solved / scale).tolist()
    return per_node, per_mac


def waiting(timed: Sequence[Timed], by: str, processes: int, args: argparse.Namespace) -> float:
    """Share of the processes' time in which they wait for the slowest one."""
    rng, waited, spent = random.Random(args.seed), 0.0, 0.0
    for _ in range(args.draws):
        meta_batch = rng.choices(timed, k=args.meta_batch)
        shares = balance([getattr(one, by) for one in meta_batch], processes)
        times = [sum(meta_batch[i].seconds for i in share) for share in shares]
        waited += sum(max(times) - seconds for seconds in times)
        spent += processes * max(times)
    return waited / spent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="networks of each space")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--meta-batch", type=int, default=8)
    parser.add_argument("--draws", type=int, default=1000, help="meta-batches that are shared out")
    parser.add_argument("--repeat", type=int, default=2, help="steps of each network")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
