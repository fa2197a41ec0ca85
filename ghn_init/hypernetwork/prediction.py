"""Graphs and a hypernetwork -> predicted tensors by parameter name."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.devices import moved
from ghn_init.graph.graph import NORMS, WEIGHTS, Graph, Node
from ghn_init.graph.isolation import one_at_a_time
from ghn_init.hypernetwork.decoder import (
    VECTORS,
    cut,
    normalize_bias,
    normalize_norm_weight,
    normalize_weight,
)
from ghn_init.hypernetwork.encoding import class_tokens, shape4
from ghn_init.hypernetwork.ghn import GHN, Decoder
from ghn_init.weights.tiling import repeated

_TOKEN_STD = 0.02
"""Standard deviation of the class tokens' rows in a positional embedding."""

_MAX_VALUES = 2**26
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
    """A node to decode.

    Arguments:
        graph, index: of the node.
        node: the node.
        wanted: the names of the parameters to predict, of those that it carries.
    """

    graph: int
    index: int
    node: Node
    wanted: tuple[str, ...]


def predict_graphs(
    graphs: Sequence[Graph],
    ghn: GHN,
    wanted: Sequence[Collection[str] | None] | None = None,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Predict the parameters of a batch of graphs; all of their nodes are decoded together.

    Arguments:
        graphs: one per model.
        ghn: the hypernetwork; it computes on its own device.
        wanted: for each graph, the names of the parameters to predict; None for all of them.
        seed: of the rows for class tokens in positional embeddings, the only random values.

    Returns: for each graph, tensors by parameter name, on the hypernetwork's device, in its dtype.
        What is decoded with fewer channels than its parameter has is returned as it is (of a wide
        model it is a small part of its size): `weights.tiling.repeated` gives the whole tensor.
        Gradients flow to the hypernetwork unless they are switched off.
    """
    # The last digits depend on the number of threads, which other threads of ours change.
    with one_at_a_time():
        return _predicted(graphs, ghn, wanted or [None] * len(graphs), seed)


def _predicted(
    graphs: Sequence[Graph], ghn: GHN, wanted: Sequence[Collection[str] | None], seed: int
) -> list[dict[str, Tensor]]:
    features = _features(graphs, ghn)
    starts = [0, *itertools.accumulate(map(len, graphs))]
    predicted: list[dict[str, Tensor]] = [{} for _ in graphs]
    groups = _groups(graphs, wanted)
    for batch in _batches(groups, ghn.decoder):
        for targets, tensors in _decode(ghn, features, starts, batch, seed):
            columns = [tensor.unbind() for tensor in tensors]
            for target, *values in zip(targets, *columns, strict=True):
                named = zip(_names(target.node), values, strict=False)
                predicted[target.graph] |= {n: value for n, value in named if n in target.wanted}
    return predicted


def _features(graphs: Sequence[Graph], ghn: GHN) -> Tensor:
    """Features of the nodes of all graphs, one after the other: `(N, d)`.

    As one batch on a GPU. A CPU gains nothing from a batch, and loses what the padding costs: time
    and memory grow with the square of the largest graph.
    """
    if ghn.device.type == "cpu":
        return torch.cat([ghn(ghn.encode([graph]))[0] for graph in graphs])
    padded = ghn(ghn.encode(list(graphs)))
    return torch.cat([rows[: len(graph)] for rows, graph in zip(padded, graphs, strict=True)])


def _groups(
    graphs: Sequence[Graph], wanted: Sequence[Collection[str] | None]
) -> dict[_Recipe, list[_Target]]:
    """Nodes to decode, by recipe."""
    groups: dict[_Recipe, list[_Target]] = defaultdict(list)
    for g, (graph, names) in enumerate(zip(graphs, wanted, strict=True)):
        done: set[str] = set()
        heads = {index for head in graph.classifiers for index in head}
        for i, node in enumerate(graph.nodes):
            if node.param is None or node.param in done:
                continue  # a parameter used twice is predicted from its first use
            done.add(node.param)
            chosen = tuple(n for n in _names(node) if n and (names is None or n in names))
            if chosen:
                groups[_recipe(node, i in heads)].append(_Target(g, i, node, chosen))
    return groups


def _batches(
    groups: dict[_Recipe, list[_Target]], decoder: Decoder
) -> Iterator[list[tuple[_Recipe, list[_Target]]]]:
    """The groups, cut so that what is computed at a time stays small next to a large model."""
    batch: list[tuple[_Recipe, list[_Target]]] = []
    room = _MAX_VALUES
    for recipe, targets in groups.items():
        size = decoder.size(recipe.kind, recipe.shape)
        values = decoder.numbers(size) if size else 1
        count = max(1, _MAX_VALUES // values)
        for start in range(0, len(targets), count):
            part = targets[start : start + count]
            if batch and room < values * len(part):
                yield batch
                batch, room = [], _MAX_VALUES
            batch.append((recipe, part))
            room -= values * len(part)
    yield batch


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
    ghn: GHN,
    features: Tensor,
    starts: Sequence[int],
    batch: list[tuple[_Recipe, list[_Target]]],
    seed: int,
) -> Iterator[tuple[list[_Target], tuple[Tensor, ...]]]:
    """For each recipe its targets, and what is decoded for them: one tensor, or two for norms.

    Arguments:
        features: `(N, d)` of the nodes of all graphs, one after the other.
        starts: where those of each graph begin.
    """
    index = [starts[t.graph] + t.index for _, targets in batch for t in targets]
    chosen = features[moved(torch.tensor(index, dtype=torch.long), features.device)]
    rows = chosen.split([len(targets) for _, targets in batch])
    sizes = [ghn.decoder.size(recipe.kind, recipe.shape) for recipe, _ in batch]
    wanted = [(x, size) for x, size in zip(rows, sizes, strict=True) if size]
    decoded = iter(ghn.decoder(wanted))
    others = [(part[0], x) for part, x, size in zip(batch, rows, sizes, strict=True) if not size]
    vectors = _vectors(ghn, others)
    for (recipe, targets), size in zip(batch, sizes, strict=True):
        if not size:
            yield targets, next(vectors)
        elif recipe.kind in VECTORS:
            yield targets, _pairs(next(decoded), recipe)
        else:
            yield targets, (_weight(ghn, next(decoded), recipe, seed),)


def _weight(ghn: GHN, decoded: Tensor, recipe: _Recipe, seed: int) -> Tensor:
    """`(N, out, in, height, width)` decoded weights -> `(N, *shape)`, or fewer channels."""
    shape = recipe.shape
    if recipe.kind == "position":
        return _positional(decoded, shape, seed)
    if recipe.kind == "class_weight":
        decoded = ghn.decoder.classifier(decoded[..., 0, 0])
    weight = cut(normalize_weight(decoded, shape), shape[:2])
    return weight.reshape(*weight.shape[:3], *shape[2:])


def _vectors(ghn: GHN, groups: Sequence[tuple[_Recipe, Tensor]]) -> Iterator[tuple[Tensor, ...]]:
    """`(N, d)` features of nodes for each recipe -> `(N, out)` vectors; two for norms."""
    if not groups:
        return
    lengths = [len(x) for _, x in groups]
    weights, biases = ghn.decoder_1d(torch.cat([x for _, x in groups])).unbind(1)
    kinds = normalize_norm_weight(weights), normalize_bias(biases), biases
    parts = zip(*(kind.split(lengths) for kind in kinds), strict=True)
    for (recipe, _), (weight, bias, before) in zip(groups, parts, strict=True):
        if recipe.kind == "class_bias":
            bias = normalize_bias(ghn.bias_class(before))
        vectors = (weight, bias) if recipe.kind == "norm" else (bias,)
        yield tuple(cut(vector, recipe.shape) for vector in vectors)


def _pairs(decoded: Tensor, recipe: _Recipe) -> tuple[Tensor, ...]:
    """`(N, 2n, 1, 1, 1)` vectors of a low-rank decoder -> `(N, out)`; two for norms."""
    weight, bias = decoded.view(len(decoded), 2, -1).unbind(1)
    norm = [normalize_norm_weight(weight)] if recipe.kind == "norm" else []
    return tuple(cut(vector, recipe.shape) for vector in (*norm, normalize_bias(bias)))


def _positional(decoded: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Positional embeddings: `(N, 1, tokens, channels)`, class tokens (drawn) in front.

    One with four dimensions is taken as it is decoded.
    """
    out, in_, _, _ = shape4(shape, positional=True)
    size = (out, in_, *decoded.shape[3:])
    decoded = torch.stack([repeated(block, size) for block in cut(decoded, (out, in_))])
    if len(shape) == 4:
        return decoded
    patches = decoded.flatten(3).transpose(2, 3)
    generator = torch.Generator().manual_seed(seed)  # whatever else is in the batch
    tokens = (1, 1, class_tokens(shape), in_)
    front = torch.randn(tokens, generator=generator, dtype=torch.float32) * _TOKEN_STD
    front = moved(front.to(patches.dtype), patches.device)
    return torch.cat([front.expand(len(patches), -1, -1, -1), patches], dim=2)
