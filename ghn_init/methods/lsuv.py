"""LSUV: orthogonal weights, then unit variance of every layer's output, from the first to the last.

Mishkin & Matas, 2016, https://arxiv.org/abs/1511.06422.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.methods.method import Given, Job, Method, Values
from ghn_init.methods.trial import trial
from ghn_init.names import abridged
from ghn_init.settings import Count, Positive, check
from ghn_init.weights.postprocess import orthogonalize, weight_layers

_aten = torch.ops.aten
_LAYERS = {_aten.convolution, _aten.addmm, _aten.mm, _aten.bmm, _aten.baddbmm, _aten.linear}
"""Operators that multiply by a weight."""


@dataclass(frozen=True)
class LSUVSettings:
    """Settings of LSUV; tolerance and steps as in the paper's Algorithm 1.

    Arguments:
        steps: how often a layer is scaled at most (T_max).
        tolerance: of the variance (Tol_var).
        batch: images, where there are as many.
    """

    steps: Count = 10
    tolerance: Positive = 0.1
    batch: Count = 128

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for values that no run can have."""
        check(self)


def orthonormal(job: Job) -> Values:
    """Orthonormal convolution and linear weights, the last layer's too, and biases of 0.

    Algorithm 1, line 1; the biases are those of the authors' code.
    """
    layers = [name for name in weight_layers(job.graph) if name in job.writable]
    values = {}
    for name in layers:
        drawn = torch.randn(job.graph.shapes[name], generator=job.generator)
        values[name] = orthogonalize(drawn[None])[0][0]
    for weight, bias in _biases(job.graph):
        if weight in values and bias in job.writable:
            values[bias] = torch.zeros(job.graph.shapes[bias])
    return values


def _biases(graph: Graph) -> Iterator[tuple[str, str]]:
    """Weights and the biases behind them."""
    for node, before in zip(graph.nodes, graph.predecessors, strict=True):
        weight = graph.nodes[before[0]].param if len(before) == 1 else None
        if node.op == "bias" and node.param and weight:
            yield weight, node.param


def unit_variance(job: Job) -> Given:
    """Scale each layer until its output for a batch has variance 1.

    Needs images; one forward pass does it, as a layer is scaled before the next one sees its
    output. Convolution and linear weights that may be written are scaled, the last layer's too, at
    their first use. Left are weights that the model normalizes or computes before it uses them.
    Batch norms use the batch's statistics, dropout is off.

    Raises:
        GHNInitError: an output is not finite, or the model does not run on the images.
    """
    assert job.images is not None
    with trial(job) as tried:
        images = tried.fitted(job.images[: job.options.batch])
        names = [name for name in weight_layers(job.graph) if name in job.writable]
        scaling = _Scaling({name: tried.start[name] for name in names}, job.options)
        with torch.no_grad(), scaling:
            tried.outputs(images)
        if scaling.failed:
            raise GHNInitError(scaling.failed)
        tensors = {name: tried.start[name].float().clone() for name in scaling.changed}
        return Given(tensors, notes=tuple(scaling.notes()))


class _Scaling(TorchDispatchMode):
    """Scales each weight at its first use, in place, and goes on with the new output."""

    def __init__(self, weights: dict[str, Tensor], settings: LSUVSettings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.settings = weights, settings
        self._by_memory = {_memory(weight): name for name, weight in weights.items()}
        self.variances: dict[str, tuple[float, float]] = {}  # before and after
        self.changed: list[str] = []
        self.failed = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "overloadpacket", None) not in _LAYERS or self.failed:
            return output
        found = (self._by_memory.get(_memory(a)) for a in args if isinstance(a, Tensor))
        name = next((name for name in found if name and name not in self.variances), None)
        if name is None:
            return output
        first = variance = _variance(output)
        for _ in range(self.settings.steps):  # Algorithm 1, lines 3 to 8
            if abs(variance - 1) < self.settings.tolerance or not 0 < variance < float("inf"):
                break
            self.weights[name].div_(variance**0.5)
            output = func(*args, **(kwargs or {}))
            variance = _variance(output)
            if name not in self.changed:
                self.changed.append(name)
        if not variance < float("inf"):
            self.failed = f"lsuv: the output of {name} is not finite: look at images and weights."
        self.variances[name] = (first, variance)
        return output

    def notes(self) -> Iterator[str]:
        """How the variances have changed, and which layers have none of 1."""
        far = [
            name
            for name, (_, last) in self.variances.items()
            if abs(last - 1) >= self.settings.tolerance
        ]
        if self.variances:
            before = [first for first, _ in self.variances.values()]
            done = f"{len(before) - len(far)} of {len(before)} layers"
            yield (
                f"lsuv: variance of the layers' outputs from {min(before):.3g} to "
                f"{max(before):.3g} before; of {done} now 1 within {self.settings.tolerance:g}"
            )
        if far:
            yield f"{abridged(far)}: lsuv has not brought the variance of the output to 1"
        unseen = [name for name in self.weights if name not in self.variances]
        if unseen:
            yield (
                f"{abridged(unseen)}: not scaled by lsuv, as evaluation mode does not use the "
                "weight, or not as it is"
            )


def _variance(output: Tensor) -> float:
    return float(output.double().var(correction=0))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


LSUV = Method(
    name="lsuv",
    values=orthonormal,
    summary="orthonormal weights, scaled so that each layer's output has variance 1",
    paper="Mishkin & Matas, 2016, https://arxiv.org/abs/1511.06422",
    images=True,
    refine=unit_variance,
    options=LSUVSettings,
)
