"""Attention that starts as it ends up: products of weights near the identity.

Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023,
https://arxiv.org/abs/2305.09828. In trained vision transformers the product of a head's query and
key weights has a positive diagonal, and that of the value and output weights a negative one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ghn_init.graph.attention import Attention, Projection
from ghn_init.methods.method import Given, Job, Method

QUERY_KEY = (0.7, 0.7)
"""alpha and beta of the product of query and key weights."""
VALUE_OUT = (0.4, -0.4)
"""Those of the product of value and output weights, whose diagonal is negative."""

_NO_PAIR = "mimetic sets the weights of attention between the tokens of one sequence"


def mimetic(job: Job) -> Given:
    """The weights of queries, keys, values and outputs of every self-attention.

    Left, with the reason: attention between two sequences, heads that share keys, sizes for which
    the products are no square matrices, biases, and whatever is no attention.
    """
    tensors: dict[str, Tensor] = {}
    left = {name: _NO_PAIR for name in job.graph.shapes}
    for attention in job.graph.attentions:
        if problem := unfit(attention, job.graph.shapes):
            left |= {p.param: f"{problem}: mimetic leaves it" for p in attention.projections}
            continue
        for index in range(len(attention.query.heads)):
            query, key = query_and_key(attention, index, job)
            place(tensors, attention.query, index, query, job)
            place(tensors, attention.key, index, key, job)
        value_and_out(tensors, attention, job)
    notes = () if tensors else ("mimetic has set nothing: it found no self-attention that it can",)
    return Given(tensors, left, notes=notes)


def unfit(attention: Attention, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why an attention cannot be set in this way; empty if it can."""
    if attention.out is None:
        return "no single layer takes what the attention gives"
    widths = {shapes[p.param][1] for p in (attention.query, attention.key, attention.value)}
    channels = sum(map(len, attention.value.heads))
    width = max(widths)
    if any(_has_other_rows(attention, name, shapes[name][0]) for name in _into(attention)):
        return "its weights are a part of a larger one"
    if not attention.on_itself or len(widths) > 1:
        return "queries and keys are computed from different tokens"
    if not len(attention.query.heads) == len(attention.key.heads) == len(attention.value.heads):
        return "several heads share their keys"
    if shapes[attention.out.param][0] != width or channels > width:
        return "the product of its value and output weights is no square matrix of low rank"
    if len(attention.query.heads[0]) > width:
        return "its heads are wider than the model"
    return ""


def _into(attention: Attention) -> set[str]:
    return {p.param for p in (attention.query, attention.key, attention.value)}


def _has_other_rows(attention: Attention, name: str, rows: int) -> bool:
    """Whether a weight has rows that give neither queries nor keys nor values."""
    projections = (attention.query, attention.key, attention.value)
    own = {row for p in projections if p.param == name for head in p.heads for row in head}
    return len(own) < rows


def query_and_key(attention: Attention, head: int, job: Job) -> tuple[Tensor, Tensor]:
    """Of one head `(channels, in)` each: W_Q W_K^T = alpha Z + beta I, at the head's rank."""
    width = job.graph.shapes[attention.query.param][1]
    noise = torch.randn(width, width, generator=job.generator)
    left, right = factors(noise, len(attention.query.heads[head]), *QUERY_KEY)
    return left.T, right.T


def value_and_out(tensors: dict[str, Tensor], attention: Attention, job: Job) -> None:
    """Place the values and the output of all heads: W_V W_proj = alpha Z - beta I."""
    assert attention.out is not None
    heads = attention.value.heads
    width = job.graph.shapes[attention.value.param][1]
    noise = torch.randn(width, width, generator=job.generator)
    left, right = factors(noise, sum(map(len, heads)), *VALUE_OUT)
    at = 0
    for index, head in enumerate(heads):
        part = slice(at, at := at + len(head))
        place(tensors, attention.value, index, left.T[part], job)
        out = room(tensors, attention.out.param, job)
        out.flatten(1)[:, list(attention.out.heads[index])] = right[:, part]


def factors(noise: Tensor, rank: int, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Two matrices `(width, rank)` whose product L R^T is alpha Z + beta I at that rank.

    U S V^T being the product's singular value decomposition, they are U S^(1/2) and V S^(1/2), cut
    at the rank.

    Arguments:
        noise: `(width, width)` from N(0, 1); divided by sqrt(width) it is Z.
        rank: of the product.
        alpha, beta: how much of either.
    """
    width = len(noise)
    u, s, vt = torch.linalg.svd(alpha * noise / math.sqrt(width) + beta * torch.eye(width))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vt[:rank].T * root


def place(
    tensors: dict[str, Tensor], projection: Projection, head: int, rows: Tensor, job: Job
) -> None:
    """Write a head's rows into the weight that they are a part of."""
    weight = room(tensors, projection.param, job)
    weight.flatten(1)[list(projection.heads[head])] = rows


def room(tensors: dict[str, Tensor], name: str, job: Job) -> Tensor:
    """The tensor of a parameter's size to write into. Attention fills all of its weights."""
    if name not in tensors:
        tensors[name] = torch.zeros(job.graph.shapes[name])
    return tensors[name]


MIMETIC = Method(
    name="mimetic",
    values=mimetic,
    summary="attention's products of weights near the identity, as in trained transformers",
    paper="Trockman & Kolter, 2023, https://arxiv.org/abs/2305.09828",
)
