"""Attention that starts as a convolution: each head looks at one neighbor of a patch.

Zheng et al., "Structured Initialization for Vision Transformers", NeurIPS 2025,
https://arxiv.org/abs/2505.19985. Random impulse filters do in a convolutional network what learned
ones do. Queries and keys are solved for, so that the attention of the positions alone is a matrix
of impulses: from each patch to the one above, below, beside it, or itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_init.graph.attention import Attention
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.mimetic import place, unfit, value_and_out

POSITIONS = 18.0
"""How much larger positional embeddings start than N(0, 0.02): the authors' `norm_p`."""
QUERY_KEY = 7.0
"""Frobenius norm of each head's query and key weights: the authors' `norm_q`."""
OFFSETS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Rows and columns from a patch to its neighbor, of the heads in turn: a 3 x 3 kernel."""

_STRENGTH, _NOISE, _DEVIATION = 1000.0, 3.0, 0.6
"""Of an impulse, of what is elsewhere, and the standard deviation of that before it is scaled."""

_ELSE = "impulse sets the weights of self-attention, and positional embeddings"
_NONE = (
    "impulse has set nothing: it needs self-attention between the patches of a square grid, and "
    "one positional embedding (1, tokens, channels)"
)


@dataclass(frozen=True)
class _Positions:
    """The positional embedding of a model.

    Arguments:
        param: its name.
        values: `(tokens, channels)`, with class tokens first.
        side: of the grid of patches.
    """

    param: str
    values: Tensor
    side: int

    @property
    def patches(self) -> Tensor:
        """`(side * side, channels)`."""
        return self.values[-self.side * self.side :]


def impulse(job: Job) -> Given:
    """Positional embeddings, and the weights of each self-attention between patches.

    Values and outputs are mimetic (`mimetic`), as the authors have them. Left, with the reason:
    attention between other things than patches, what `mimetic` leaves, and whatever is none.
    """
    left = dict.fromkeys(job.graph.shapes, _ELSE)
    positions = _positions(job)
    if positions is None:
        return Given({}, left, notes=(_NONE,))
    tensors: dict[str, Tensor] = {}
    for attention in job.graph.attentions:
        if problem := _unfit(attention, positions, job):
            left |= {p.param: f"{problem}: impulse leaves it" for p in attention.projections}
            continue
        queries, keys = _queries_and_keys(attention, positions, job)
        for head, (query, key) in enumerate(zip(queries, keys, strict=True)):
            place(tensors, attention.query, head, query, job)
            place(tensors, attention.key, head, key, job)
        value_and_out(tensors, attention, job)
    if not tensors:
        return Given({}, left, notes=(_NONE,))
    if positions.param in job.writable:
        tensors[positions.param] = positions.values[None]
    return Given(tensors, left)


def _positions(job: Job) -> _Positions | None:
    """The model's only positional embedding: drawn anew, or its own if that may not be written."""
    found = [
        n for n in job.graph.nodes if n.op == "pos_enc" and n.param and len(n.shape or ()) == 3
    ]
    if len(found) != 1:
        return None
    param = found[0].param or ""
    _, tokens, channels = job.graph.shapes[param]
    own = dict(job.model.named_parameters())[param].detach()
    if param in job.writable or own.is_meta:
        drawn = torch.randn(tokens, channels, generator=job.generator)
        values = POSITIONS * 0.02 * drawn
    else:
        values = own[0].to("cpu", torch.float32)
    side = math.isqrt(tokens)
    return _Positions(param, values, side) if side > 1 else None


def _unfit(attention: Attention, positions: _Positions, job: Job) -> str:
    if attention.tokens < positions.side**2:
        return "its queries are not the patches of the whole grid"
    if job.graph.shapes[attention.query.param][1] != positions.values.shape[1]:
        return "it is not as wide as the positional embedding"
    return unfit(attention, job.graph.shapes)


def _queries_and_keys(
    attention: Attention, positions: _Positions, job: Job
) -> tuple[Tensor, Tensor]:
    heads, patches = len(attention.query.heads), positions.side**2
    noise = torch.empty(heads, patches, patches)
    nn.init.trunc_normal_(noise, std=_DEVIATION, generator=job.generator)
    rank = len(attention.query.heads[0])
    queries, keys = solved(positions.patches, impulses(heads, positions.side), noise, rank)
    return QUERY_KEY * queries, QUERY_KEY * keys


def impulses(heads: int, side: int) -> Tensor:
    """`(heads, patches, patches)`: 1 from each patch to its neighbor, where it has one.

    Arguments:
        heads: the tenth has the neighbor of the first, and so on.
        side: of the grid.
    """
    found = torch.zeros(heads, side, side, side, side)
    for head in range(heads):
        down, right = OFFSETS[head % len(OFFSETS)]
        rows = torch.arange(max(0, -down), side - max(0, down))
        columns = torch.arange(max(0, -right), side - max(0, right))
        r, c = torch.meshgrid(rows, columns, indexing="ij")
        found[head, r, c, r + down, c + right] = 1
    return found.view(heads, side * side, side * side)


def solved(positions: Tensor, wanted: Tensor, noise: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Queries and keys, `(heads, rank, channels)`, for which P Q^T K P^T is near what is wanted.

    P being the normalized positions, and P^+ its pseudo-inverse at the rank, Q^T K is P^+ W P^+^T:
    W is what is wanted, and noise elsewhere. Both are given the norm 1.

    Arguments:
        positions: `(patches, channels)`.
        wanted: `(heads, patches, patches)`, 1 and 0.
        noise: of that size.
        rank: of a head.
    """
    matrix = _STRENGTH * wanted + _NOISE * noise * (wanted == 0)
    normalized = F.layer_norm(positions, positions.shape[-1:])
    u, s, vt = torch.linalg.svd(normalized, full_matrices=False)
    kept = min(rank, int((s > 1e-5 * s[0]).sum()))
    # P^+ = V S^-1 U^T: the product is V (S^-1 U^T W U S^-1) V^T, and only what is inside is cut.
    inner = (u[:, :kept] / s[:kept]).T @ matrix @ (u[:, :kept] / s[:kept])
    left, sizes, right = torch.linalg.svd(inner)
    root = (sizes.sqrt() / sizes.sqrt().norm(dim=-1, keepdim=True))[:, None]
    queries = (vt[:kept].T @ (left * root)).mT
    keys = (vt[:kept].T @ (right.mT * root)).mT
    padding = (0, 0, 0, rank - kept)
    return F.pad(queries, padding), F.pad(keys, padding)


IMPULSE = Method(
    name="impulse",
    values=impulse,
    summary="attention between patches as convolutions with random impulses",
    paper="Zheng et al., 2025, https://arxiv.org/abs/2505.19985",
)
