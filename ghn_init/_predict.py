"""Graphs and a hypernetwork -> predicted tensors by parameter name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ._decoder import Selected, fit, normalise_bias, normalise_norm_weight, normalise_weight
from ._encoding import class_tokens, shape4
from ._ghn import GHN
from ._graph import NORMS, WEIGHTS, Graph, Node

_TOKEN_STD = 0.02
"""Standard deviation of the class tokens' rows in a positional embedding (spec, section 6)."""

_MAX_VALUES = 2**24
"""Values that are decoded at a time, unless a single parameter has more."""


@dataclass(frozen=True)
class _Recipe:
    """What is computed for a node; nodes with one recipe are decoded and finished together.

    Arguments:
        kind: `"weight"`, `"position"`, `"class_weight"`, `"norm"`, `"bias"` or `"class_bias"`.
        shape: of the parameter.
    """

    kind: str
    shape: tuple[int, ...]


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
    features = _features(graphs, ghn)
    predicted: list[dict[str, Tensor]] = [{} for _ in graphs]
    selected = Selected()
    for recipe, targets in _batches(_groups(graphs, classifiers)):
        by_graph = groupby(targets, key=lambda target: target.graph)
        rows = torch.cat([features[graph][[t.index for t in ts]] for graph, ts in by_graph])
        columns = [tensor.unbind() for tensor in _decode(ghn, rows, recipe, selected, seed)]
        for target, tensors in zip(targets, zip(*columns, strict=True), strict=True):
            named = zip(_names(target.node), tensors, strict=False)
            predicted[target.graph] |= {name: tensor for name, tensor in named if name}
    return predicted


def _features(graphs: Sequence[Graph], ghn: GHN) -> list[Tensor]:
    """For each graph, the features of its nodes: `(N, d)`.

    As one batch on a GPU. A CPU gains nothing from a batch, and loses what the padding costs: time
    and memory grow with the square of the largest graph.
    """
    if ghn.device.type == "cpu":
        return [ghn(ghn.encode([graph]))[0] for graph in graphs]
    padded = ghn(ghn.encode(list(graphs)))
    return [rows[: len(graph)] for rows, graph in zip(padded, graphs, strict=True)]


def _groups(graphs: Sequence[Graph], classifiers: Sequence[bool]) -> dict[_Recipe, list[_Target]]:
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
                groups[_recipe(node, i in heads)].append(_Target(g, i, node))
    return groups


def _batches(
    groups: dict[_Recipe, list[_Target]],
) -> Iterator[tuple[_Recipe, list[_Target]]]:
    """The groups, cut so that what is computed at a time stays small next to a large model."""
    for recipe, targets in groups.items():
        count = max(1, _MAX_VALUES // math.prod(recipe.shape))
        for start in range(0, len(targets), count):
            yield recipe, targets[start : start + count]


def _recipe(node: Node, is_classifier: bool) -> _Recipe:
    assert node.shape is not None
    if node.op == "pos_enc":
        return _Recipe("position", node.shape)
    if node.op in WEIGHTS:
        return _Recipe("class_weight" if is_classifier else "weight", node.shape)
    if node.op in NORMS:
        return _Recipe("norm", node.shape)
    return _Recipe("class_bias" if is_classifier else "bias", node.shape)


def _names(node: Node) -> tuple[str | None, str | None]:
    """The parameters that a node's tensors are for."""
    return node.param, node.norm_bias


def _decode(
    ghn: GHN, x: Tensor, recipe: _Recipe, selected: Selected, seed: int
) -> tuple[Tensor, ...]:
    """`(N, d)` features of nodes with one recipe -> `(N, *shape)` parameters; two for norms."""
    kind, shape = recipe.kind, recipe.shape
    if kind == "position":
        return (_positional(ghn, x, shape, selected, seed),)
    if kind == "class_weight":
        weight = ghn.decoder.classifier(x, min(shape[1], ghn.config.channels), selected)
        return (fit(normalise_weight(weight, shape), shape[:2]).reshape(-1, *shape),)
    if kind == "weight":
        out, in_, height, width = shape4(shape)
        weight = normalise_weight(ghn.decoder(x, out, in_, height, width, selected), shape)
        return (fit(weight, (out, in_)).reshape(-1, *shape),)
    vectors = ghn.decoder_1d(x)
    if kind == "class_bias":
        return (fit(normalise_bias(ghn.bias_class(vectors[:, 1])), shape),)
    bias = fit(normalise_bias(vectors[:, 1]), shape)
    return (bias,) if kind == "bias" else (fit(normalise_norm_weight(vectors[:, 0]), shape), bias)


def _positional(
    ghn: GHN, x: Tensor, shape: tuple[int, ...], selected: Selected, seed: int
) -> Tensor:
    """Positional embeddings: `(N, 1, tokens, channels)`, class tokens (drawn) in front.

    One with four dimensions is taken as it is decoded.
    """
    out, in_, height, width = shape4(shape, positional=True)
    decoded = fit(ghn.decoder(x, out, in_, height, width, selected), (out, in_))
    if len(shape) == 4:
        return decoded
    patches = decoded.flatten(3).transpose(2, 3)
    generator = torch.Generator().manual_seed(seed)  # whatever else is in the batch
    front = torch.randn(1, 1, class_tokens(shape), in_, generator=generator) * _TOKEN_STD
    return torch.cat([front.to(patches).expand(len(x), -1, -1, -1), patches], dim=2)
