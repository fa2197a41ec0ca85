"""Weight selection: every so many channels of a larger model that is trained.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024, https://arxiv.org/abs/2311.18823.
Of each tensor it takes evenly spaced slices along every axis (uniform element selection), and the
first layers of a deeper model. Queries, keys and values in one weight are selected apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import Graph
from ghn_init.methods.matching import Matching, Shape, match
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.source import Source, open_source

Rows = list[list[int]]
"""For each of queries, keys and values the rows of a weight that give them."""

_BY_HEAD = (
    "queries, keys and values alternate in it: give the source as a model, as a file does not say "
    "how"
)


def select(job: Job) -> Given:
    """What the source has for each parameter, made smaller."""
    return _selected_from(open_source(job.source), job)


def _selected_from(source: Source, job: Job) -> Given:
    found = match(job, source, is_as_large)
    parts = _parts(job.graph)
    there = _parts_there(job, source, found, parts)
    tensors, left = {}, dict(found.left)
    for name, other in found.names.items():
        tensor, shape = source.tensor(other), job.graph.shapes[name]
        if name not in parts:
            tensors[name] = selected(tensor, shape)
        elif name in there:
            tensors[name] = _selected_apart(tensor, shape, parts[name], there[name])
        else:
            left[name] = _BY_HEAD
    taken, notes = account(found, source, tensors)
    return Given(tensors, left, taken, notes, _statistics(job, source, taken))


def is_as_large(shape: Shape, other: Shape) -> bool:
    """Whether slices of the second shape can give the first."""
    return len(shape) == len(other) and all(a <= b for a, b in zip(shape, other, strict=True))


def selected(tensor: Tensor, shape: Shape) -> Tensor:
    """Evenly spaced slices along each axis: the paper's uniform element selection."""
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, evenly_spaced(tensor.shape[axis], size))
    return tensor


def evenly_spaced(size: int, count: int) -> Tensor:
    """Which of `size` slices are taken: every n-th, or from the first to the last."""
    if size % count == 0:
        return torch.arange(count) * (size // count)
    return torch.linspace(0, size - 1, count).round().long()


def account(
    found: Matching, source: Source, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """For the report: where each value is from, and how the two models were matched."""
    taken = {name: other for name, other in found.names.items() if name in tensors}
    how = "the order of the layers in the two graphs" if found.by_graph else "name"
    return taken, (f"{len(taken)} tensors from {source.name}, matched by {how}",)


def _statistics(job: Job, source: Source, taken: Mapping[str, str]) -> dict[str, Tensor]:
    """The running statistics of norms whose weights are taken: they belong to these weights."""
    sizes = {name: tuple(buffer.shape) for name, buffer in job.model.named_buffers()}
    found = {}
    for name, other in taken.items():
        for kind in ("running_mean", "running_var"):
            here = f"{name.rpartition('.')[0]}.{kind}"
            there = f"{other.rpartition('.')[0]}.{kind}"
            if here in sizes and there in source.tensors:
                found[here] = selected(source.tensor(there), sizes[here])
    return found


# -- queries, keys and values in one weight


def _parts(graph: Graph) -> dict[str, Rows]:
    """For each parameter that holds several of them, and their biases: the rows of each."""
    found: dict[str, Rows] = {}
    for attention in graph.attentions:
        for projection in (attention.query, attention.key, attention.value):
            rows = [row for head in projection.heads for row in head]
            if len(rows) < graph.shapes[projection.param][0]:
                found.setdefault(projection.param, []).append(rows)
    whole = {n: p for n, p in found.items() if sum(map(len, p)) == graph.shapes[n][0]}
    for node, before in zip(graph.nodes, graph.predecessors, strict=True):
        if node.op == "bias" and node.param and len(before) == 1:
            weight = graph.nodes[before[0]].param
            if weight in whole:
                whole[node.param] = whole[weight]
    return whole


def _parts_there(
    job: Job, source: Source, found: Matching, parts: Mapping[str, Rows]
) -> dict[str, Rows]:
    """For parameters that hold several of them the rows of each in the source's parameter.

    Where they alternate, by head, the source's graph says which they are; a file has none.
    """
    there: dict[str, Rows] = {}
    for name, rows in parts.items():
        total = sum(map(len, rows))
        size = len(source.tensors[found.names[name]]) if name in found.names else 0
        if [row for part in rows for row in part] == list(range(total)) and size:
            ends = [sum(map(len, rows[:i])) * size // total for i in range(len(rows) + 1)]
            there[name] = [list(range(a, b)) for a, b in itertools.pairwise(ends)]
    if len(there) < len(found.names.keys() & parts.keys()) and source.model is not None:
        others = _parts(source.graph(job.example_inputs))
        alternating = [name for name in parts if name in found.names and name not in there]
        there |= {n: others[o] for n in alternating if (o := found.names[n]) in others}
    return there


def _selected_apart(tensor: Tensor, shape: Shape, rows: Rows, there: Rows) -> Tensor:
    result = tensor.new_empty(shape)
    for part, other in zip(rows, there, strict=True):
        result[part] = selected(tensor[other], (len(part), *shape[1:]))
    return result


def copied(job: Job) -> Given:
    """All of the same model, trained, but its last layers: the papers' oracle."""
    source = open_source(job.source)
    given = _selected_from(source, job)
    for name, other in given.taken.items():
        if source.tensors[other].shape != given.tensors[name].shape:
            raise GHNInitError(
                f"source {source.name} is another model: its {other} is "
                f"{tuple(source.tensors[other].shape)}, and the model's is "
                f"{job.graph.shapes[name]}. Give the same one, or method='select'."
            )
    return given


PRETRAINED = Method(
    name="pretrained",
    values=copied,
    summary="the same model with published weights, but a classification layer of its own",
    source=True,
)

SELECT = Method(
    name="select",
    values=select,
    summary="evenly spaced slices of a larger model that is trained",
    paper="Xu et al., 2024, https://arxiv.org/abs/2311.18823",
    source=True,
)
