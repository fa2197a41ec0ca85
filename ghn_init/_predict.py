"""Graphs and a hypernetwork -> predicted tensors by parameter name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._decoder import fit, normalise_bias, normalise_norm_weight, normalise_weight
from ._encoding import positional_grid, shape4
from ._ghn import GHN
from ._graph import NORMS, WEIGHTS, Graph, Node

_TOKEN_STD = 0.02
"""Standard deviation of the class tokens' rows in a positional embedding (spec, section 6)."""


@dataclass(frozen=True)
class _Target:
    """One node to decode: graph and node index, and what to decode it as."""

    graph: int
    index: int
    node: Node
    kind: str  # "weight", "vector", "class_weight" or "class_bias"


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
    for key, targets in _groups(graphs, classifiers, ghn.config.channels).items():
        rows = features[[t.graph for t in targets], [t.index for t in targets]]
        for target, tensor in zip(
            targets, _decode(ghn, rows, targets[0].kind, key), strict=True
        ):
            tensors = _finish(target, tensor, generator)
            predicted[target.graph].update(tensors)
    return predicted


def _groups(
    graphs: Sequence[Graph], classifiers: Sequence[bool], channels: int
) -> dict[tuple[object, ...], list[_Target]]:
    """Nodes to decode, by what the decoder has to compute for them."""
    groups: dict[tuple[object, ...], list[_Target]] = defaultdict(list)
    for g, (graph, with_classifier) in enumerate(zip(graphs, classifiers, strict=True)):
        done: set[str] = set()
        for i, node in enumerate(graph.nodes):
            if node.param is None or node.shape is None or node.param in done:
                continue  # a parameter used twice is predicted from its first use
            done.add(node.param)
            is_classifier = graph.classifier is not None and i in graph.classifier
            if is_classifier and not with_classifier:
                continue
            kind = "weight" if node.op in WEIGHTS or node.op == "pos_enc" else "vector"
            if is_classifier:
                kind = "class_bias" if node.op == "bias" else "class_weight"
            key: tuple[object, ...] = (kind,)
            if kind.endswith("weight"):
                out, in_, height, width = shape4(node.shape)
                out = 0 if kind == "class_weight" else min(out, channels)
                key = (kind, out, min(in_, channels), height, width)
            groups[key].append(_Target(g, i, node, kind))
    return groups


def _decode(ghn: GHN, x: Tensor, kind: str, key: tuple[object, ...]) -> Tensor:
    if kind == "weight":
        return ghn.decoder(x, *key[1:])
    if kind == "class_weight":
        return ghn.decoder.classifier(x, key[2])
    vectors = ghn.decoder_1d(x)
    return ghn.bias_class(vectors[:, 1]) if kind == "class_bias" else vectors


def _finish(
    target: _Target, decoded: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Cut or tile a decoded tensor to the parameter's shape, and normalise it."""
    node = target.node
    name, shape = node.param, node.shape
    assert name is not None and shape is not None
    if node.op == "pos_enc":
        return {name: _positional(decoded, shape, generator)}
    if target.kind == "class_weight":
        weight = fit(decoded, shape[:2])
        return {name: normalise_weight(weight.reshape(shape))}
    if target.kind == "weight":
        size = shape4(shape)
        return {name: normalise_weight(fit(decoded, size).reshape(shape))}
    if target.kind == "class_bias":
        return {name: normalise_bias(fit(decoded, shape))}
    if node.op not in NORMS:
        return {name: normalise_bias(fit(decoded[1], shape))}
    tensors = {name: normalise_norm_weight(fit(decoded[0], shape))}
    if node.norm_bias:
        tensors[node.norm_bias] = normalise_bias(fit(decoded[1], shape))
    return tensors


def _positional(
    decoded: Tensor, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """(1, channels, side, side) -> (1, tokens, channels); rows in front, for class tokens, are drawn."""
    _, tokens, channels = shape
    side = positional_grid(tokens)
    patches = fit(decoded, (1, channels)).flatten(2).transpose(1, 2)
    front = (
        torch.randn(1, tokens - side * side, channels, generator=generator) * _TOKEN_STD
    )
    return torch.cat([front.to(patches), patches], dim=1)
