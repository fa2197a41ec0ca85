"""The hypernetwork in many processes: gradients are summed while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ghn_init.graph.graph import Graph
from ghn_init.hypernetwork.ghn import GHN
from ghn_init.hypernetwork.prediction import predict_graphs
from ghn_init.train.distributed import World
from ghn_init.weights.tiling import repeated_all

Predict = Callable[[Sequence[Graph]], list[dict[str, Tensor]]]
"""Predicts the parameters of a batch of graphs: for each, whole tensors by parameter name."""


class Predictor(nn.Module):
    """What DistributedDataParallel wraps: all of a step that the hypernetwork's weights are in.

    Arguments:
        ghn: the hypernetwork.
    """

    def __init__(self, ghn: GHN) -> None:
        super().__init__()
        self.ghn = ghn

    def forward(self, graphs: Sequence[Graph]) -> list[dict[str, Tensor]]:
        """See `Predict`. Gradients flow to the hypernetwork."""
        blocks = predict_graphs(graphs, self.ghn)
        return [repeated_all(b, g.shapes) for b, g in zip(blocks, graphs, strict=True)]


def predictor(ghn: GHN, world: World) -> Predict:
    """The hypernetwork for the steps of a run.

    In many processes, `DistributedDataParallel` sums the gradients over all of them, bucket by
    bucket, while the backward pass goes on. It sums and does not average, since every process has
    its share of one loss: so the gradient is that of the whole meta-batch, whatever the sizes of
    the shares. A process whose networks need only a part of the hypernetwork says so in time
    (`find_unused_parameters`).

    Arguments:
        ghn: the hypernetwork, alike in all processes.
        world: the processes.
    """
    whole = Predictor(ghn)
    if world.size == 1:
        return whole
    wrapped = DistributedDataParallel(
        whole, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    wrapped.register_comm_hook(None, _sum)
    return wrapped


def _sum(_: Any, bucket: Any) -> torch.futures.Future[Tensor]:
    """The sum of a bucket over all processes, begun and not waited for."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


_sum.__annotations__.clear()  # DistributedDataParallel refuses those that are text, as here
