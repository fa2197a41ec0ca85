"""Graphs and a hypernetwork -> predicted tensors by parameter name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._decoder import fit, normalise_bias, normalise_norm_weight, normalise_weight
from ._encoding import class_tokens, shape4
from ._ghn import GHN
from ._graph import NORMS, WEIGHTS, Graph, Node

_TOKEN_STD = 0.02
"""Standard deviation of the class tokens' rows in a positional embedding (spec, section 6)."""


@dataclass(frozen=True)
class _Recipe:
    """What the decoder computes for a node; nodes with one recipe are decoded together.

    Arguments:
        kind: `"weight"`, `"vector"`, `"class_weight"` or `"class_bias"`.
        out, in_, height, width: of a weight, at most as many channels as the decoder has.
    """

    kind: str
    out: int = 0
    in_: int = 0
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class _Target:
    """A node to decode: graph and node index, and the node."""

    graph: int
    index: int
    node: Node


def predict_graphs(
    graphs: Sequence[Graph], ghn: GHN, classifiers: Sequence[bool], seed: int = 0
) -> list[dict[str, Tensor]]:
    """Predict the parameters of a batch of graphs; nodes of one shape are decoded together.

    Arguments:
        graphs: one per model.
        ghn: the hypernetwork; it computes on its own device.
        classifiers: for each graph, whether to predict its classification layer.
        seed: of the rows for class tokens in positional embeddings, the only random values.

    Returns: for each graph, tensors by parameter name, on the hypernetwork's device, in its dtype.
        Gradients flow to the hypernetwork unless they are switched off.
    """
    features = ghn(ghn.encode(list(graphs)))
    predicted: list[dict[str, Tensor]] = [{} for _ in graphs]
    generator = torch.Generator().manual_seed(seed)
    for recipe, targets in _groups(graphs, classifiers, ghn.config.channels).items():
        rows = features[[t.graph for t in targets], [t.index for t in targets]]
        for target, tensor in zip(targets, _decode(ghn, rows, recipe), strict=True):
            predicted[target.graph] |= _finish(target.node, recipe.kind, tensor, generator)
    return predicted


def _groups(
    graphs: Sequence[Graph], classifiers: Sequence[bool], channels: int
) -> dict[_Recipe, list[_Target]]:
    """Nodes to decode, by recipe."""
    groups: dict[_Recipe, list[_Target]] = defaultdict(list)
    for g, (graph, with_classifier) in enumerate(zip(graphs, classifiers, strict=True)):
        done: set[str] = set()
        heads = {index for head in graph.classifiers for index in head}
        for i, node in enumerate(graph.nodes):
            if node.param is None or node.param in done:
                continue  # a parameter used twice is predicted from its first use
            done.add(node.param)
            if with_classifier or i not in heads:
                groups[_recipe(node, i in heads, channels)].append(_Target(g, i, node))
    return groups


def _recipe(node: Node, is_classifier: bool, channels: int) -> _Recipe:
    assert node.shape is not None
    if node.op not in WEIGHTS and node.op != "pos_enc":
        return _Recipe("class_bias" if is_classifier else "vector")
    out, in_, height, width = shape4(node.shape, node.op == "pos_enc")
    if is_classifier:
        return _Recipe("class_weight", in_=min(in_, channels))
    return _Recipe("weight", min(out, channels), min(in_, channels), height, width)


def _decode(ghn: GHN, x: Tensor, recipe: _Recipe) -> Tensor:
    """`(N, d)` features of nodes with one recipe -> N decoded tensors."""
    if recipe.kind == "weight":
        return ghn.decoder(x, recipe.out, recipe.in_, recipe.height, recipe.width)
    if recipe.kind == "class_weight":
        return ghn.decoder.classifier(x, recipe.in_)
    vectors = ghn.decoder_1d(x)
    return ghn.bias_class(vectors[:, 1]) if recipe.kind == "class_bias" else vectors


def _finish(
    node: Node, kind: str, decoded: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Cut or tile a decoded tensor to the parameter's shape, and normalise it."""
    name, shape = node.param, node.shape
    assert name is not None
    assert shape is not None
    if node.op == "pos_enc":
        return {name: _positional(decoded, shape, generator)}
    if kind == "class_weight":
        weight = fit(decoded, shape[:2])
        return {name: normalise_weight(weight.reshape(shape))}
    if kind == "weight":
        size = shape4(shape)
        return {name: normalise_weight(fit(decoded, size).reshape(shape))}
    if kind == "class_bias":
        return {name: normalise_bias(fit(decoded, shape))}
    if node.op not in NORMS:
        return {name: normalise_bias(fit(decoded[1], shape))}
    tensors = {name: normalise_norm_weight(fit(decoded[0], shape))}
    if node.norm_bias:
        tensors[node.norm_bias] = normalise_bias(fit(decoded[1], shape))
    return tensors


def _positional(decoded: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """(1, channels, side, side) -> (1, tokens, channels), class tokens (drawn) in front.

    A positional embedding with four dimensions is taken as it is decoded.
    """
    if len(shape) == 4:
        return fit(decoded, shape)
    channels = shape[2]
    patches = fit(decoded, (1, channels)).flatten(2).transpose(1, 2)
    front = torch.randn(1, class_tokens(shape), channels, generator=generator) * _TOKEN_STD
    return torch.cat([front.to(patches), patches], dim=1)
