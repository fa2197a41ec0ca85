"""Equalized learning rates that multiply the input of a layer, in the place of its weight.

A layer of weight W that is given c x computes (c W) x: a constant on a layer's input can be a part
of its weight (Karras et al., 2018, Section 4.1, https://arxiv.org/abs/1710.10196). Or it means
something else: images of 0 to 255 are divided by 255, a branch is to be small. The graph is the
same. The model's own weights tell: where they have a size that only the constant makes a usual one,
it belongs to them. A prediction is for c W, and is divided by c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ghn_init.graph.graph import Graph, Passage

_USUAL = 3.0
"""How far the root mean square of weights may be from 1 / sqrt(fan-in), either way."""


def with_equalized(graph: Graph, own: Mapping[str, Tensor]) -> Graph:
    """The graph with the constants on the inputs of layers that are part of the layers' weights.

    Arguments:
        graph: of the model.
        own: the model's own values by name. Where one is missing, the constant is no part of it.
    """
    found = {
        name: graph.factors.get(name, 1.0) * factor
        for name, factor in graph.input_factors.items()
        if name in own and name not in graph.normalized
        if not _is_usual(size := _size(own[name]) * abs(graph.factors.get(name, 1.0)))
        and _is_usual(size * abs(factor))
    }
    if not found:
        return graph
    passages = {
        (i, j): _without(passage, graph.input_factors[str(graph.nodes[j].param)])
        if j < len(graph) and graph.nodes[j].param in found
        else passage
        for (i, j), passage in graph.passages.items()
    }
    return replace(graph, factors={**graph.factors, **found}, passages=passages)


def _size(weight: Tensor) -> float:
    """Root mean square, in units of 1 / sqrt(fan-in)."""
    values = weight.detach().float()
    return float(values.square().mean().sqrt()) * math.sqrt(values[0].numel())


def _is_usual(size: float) -> bool:
    return 1 / _USUAL < size < _USUAL


def _without(passage: Passage, factor: float) -> Passage:
    """A passage without the factors that make up one."""
    numbers = [f for f in passage.factors if not isinstance(f, str)]
    kept, product = list(passage.factors), 1.0
    for number in reversed(numbers):
        if math.isclose(product, factor):
            break
        kept.remove(number)
        product *= number
    return replace(passage, factors=tuple(kept))
