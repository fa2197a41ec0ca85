"""Memory that a GPU takes in training, on paper: counted on meta tensors, so no GPU is needed.

    python examples/benchmarks/train_memory.py

Counted are, in float32: the hypernetwork's weights, gradients and Adam's two moments; what a
prediction keeps for its backward pass; the predicted tensors and their gradients; and what the
largest target network keeps for its own (the networks of a process run one after the other). Not
counted are the images, the buffers of kernels and what the allocator loses. bfloat16 halves what
passes keep, at most. Networks, images and classes are those of ImageNet in the GHN-3 paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from _common import config, table
from torch import Tensor

from ghn_init import GHN
from ghn_init.hypernetwork import predict_graphs
from ghn_init.train import MetaBatches, Network, Widths, sample
from ghn_init.weights import repeated

SIZES = ("t", "s", "l", "xl")
GIB = 1 << 30


def main() -> None:
    options = arguments()
    rows: list[list[object]] = []
    for meta_batch in options.meta_batch:
        nets = [sample("train", i) for i in range(meta_batch * options.draws)]
        batches = MetaBatches(nets, meta_batch, Widths(), 0, 1000, 224)
        steps = [[n for _, n in batches[step]] for step in range(options.draws)]
        drawn = [[n for n in networks if isinstance(n, Network)] for networks in steps]
        passes = {id(n): bytes_of_pass(n, options.batch_size) for ns in drawn for n in ns}
        for size in SIZES:
            with torch.device("meta"):
                ghn = GHN(config(size))
            fixed = 4 * sum(p.nbytes for p in ghn.parameters())
            row: list[object] = [f"GHN-3-{size.upper()}", meta_batch, fixed / GIB]
            for gpus in options.gpus:
                shares = [networks[rank::gpus] for networks in drawn for rank in range(gpus)]
                row.append((fixed + max(bytes_of_step(ghn, s, passes) for s in shares)) / GIB)
            rows.append(row)
    header = ["GiB of a GPU", "m", "weights and Adam", *(f"on {g}" for g in options.gpus)]
    print(table(header, rows))


def bytes_of_step(ghn: GHN, networks: Sequence[Network], passes: Mapping[int, int]) -> int:
    """What the predictions and one target network's pass take, of a process's networks."""
    predicted: list[dict[str, Tensor]] = []
    known = {p.untyped_storage()._cdata for p in ghn.parameters()}
    graphs = [network.graph for network in networks]

    def predict() -> None:
        for tensors, graph in zip(predict_graphs(graphs, ghn), graphs, strict=True):
            predicted.append({n: repeated(t, graph.shapes[n]) for n, t in tensors.items()})

    kept = saved(predict, known)
    tensors = sum(tensor.nbytes for each in predicted for tensor in each.values())
    return kept + 2 * tensors + max(passes[id(network)] for network in networks)


def bytes_of_pass(network: Network, batch_size: int) -> int:
    """What a target network keeps of its forward pass, but for its parameters."""
    shapes = network.graph.shapes
    params = {n: torch.empty(s, device="meta").requires_grad_() for n, s in shapes.items()}
    images = torch.empty(batch_size, 3, 224, 224, device="meta")
    known = {p.untyped_storage()._cdata for p in params.values()}
    return saved(lambda: network(images, params), known)


def saved(function: Callable[[], object], known: set[int]) -> int:
    """Bytes that a forward pass keeps for its backward pass, beside storages that are known."""
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(sizes.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--meta-batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--draws", type=int, default=4, help="meta-batches that are tried")
    return parser.parse_args()


if __name__ == "__main__":
    main()
