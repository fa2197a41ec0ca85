"""Values that no random initialization gives: their author meant them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ghn_init.graph.graph import NORMS, WEIGHTS, Graph

_ANYWAY = "include_deliberate=True writes it"

_LARGE = 0.5
"""From here on a bias opens or closes a gate. Smaller ones, such as 0.02, are ordinary."""


def deliberate_values(model: nn.Module, graph: Graph, own: Mapping[str, Tensor]) -> dict[str, str]:
    """Parameters whose values were chosen, with the reason to leave them.

    Weights that are all zero (LoRA's B, a zero convolution, the last layer of a residual branch),
    constant, or an identity, and the biases of these layers; biases with one large value (a gate
    that starts open or closed); beside frozen parameters also norms that start at zero. Not the
    classification layer, whose zeros only stand for the same score of all classes, and nothing in
    a model all of whose weights are of this kind: it is not initialized yet.

    Arguments:
        model: the model.
        graph: of the model.
        own: the values of its parameters, by name. What is missing is not deliberate.
    """
    params = {name: value.detach() for name, value in own.items()}
    classifier = {graph.nodes[i].param for head in graph.classifiers for i in head if i is not None}
    nodes = [n for n in graph.nodes if n.param in params and n.param not in classifier]
    weights = list(dict.fromkeys(n.param for n in nodes if n.op in WEIGHTS if n.param))
    kinds = dict(zip(weights, _kinds([params[name] for name in weights]), strict=True))
    if all(kinds.values()):
        kinds = {}
    found = {
        name: f"its values are deliberate: {kind} ({_ANYWAY})"
        for name, kind in kinds.items()
        if kind
    }
    for weight, bias in _biases(graph):
        if weight in found and bias in params:
            found[bias] = f"the weight it belongs to is deliberate ({_ANYWAY})"
    biases = [n.param for n in nodes if n.op == "bias" and n.param and n.param not in found]
    flags = _flags(
        [_one_value(p) & (p[0].abs() >= _LARGE) for p in map(params.__getitem__, biases)]
    )
    found |= {
        name: f"its values are deliberate: all the same, and large ({_ANYWAY})"
        for name, flag in zip(biases, flags, strict=True)
        if flag and params[name].numel() > 1
    }
    if not all(p.requires_grad for p in model.parameters()):
        norms = [n for n in nodes if n.op in NORMS]
        zero = _flags([(params[n.param] == 0).all() for n in norms if n.param])
        found |= {
            name: f"a norm that starts at 0 beside frozen parameters ({_ANYWAY})"
            for node, flag in zip(norms, zero, strict=True)
            for name in (node.param, node.norm_bias)
            if flag and name
        }
    return found


def _kinds(weights: list[Tensor]) -> list[str]:
    """For each weight what is deliberate about it; empty for an ordinary one.

    The first output channel tells most of them apart, without a look at the rest.
    """
    rows = [weight[0].flatten() for weight in weights]
    few = [(row != 0).sum() <= 1 for row in rows]
    suspect = _flags([_one_value(row) | sparse for row, sparse in zip(rows, few, strict=True)])
    return [_kind(w) if flag else "" for w, flag in zip(weights, suspect, strict=True)]


def _kind(weight: Tensor) -> str:
    rows = weight.flatten(1)
    if weight.numel() == 1:
        return "zero" if not weight.any() else ""
    if _one_value(weight):
        return "all the same" if weight.any() else "all zero"
    sizes = rows[rows != 0].abs()
    one_each = bool(((rows != 0).sum(1) <= 1).all()) and rows.shape[1] > 1
    return "an identity" if one_each and bool((sizes == sizes[0]).all()) else ""


def _one_value(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    return (flat == flat[0]).all()


def _flags(flags: list[Tensor]) -> list[bool]:
    """As Python values; a GPU is waited for once."""
    return torch.stack(flags).tolist() if flags else []


def _biases(graph: Graph) -> Iterator[tuple[str | None, str | None]]:
    """Weights and the biases behind them."""
    for node, before in zip(graph.nodes, graph.predecessors, strict=True):
        if node.op == "bias" and len(before) == 1:
            yield graph.nodes[before[0]].param, node.param
