"""Conditional noise and orthogonal re-initialization of predicted weights (second paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._graph import WEIGHTS, Graph


@dataclass(frozen=True)
class PostProcessing:
    """What to do to the predicted weights.

    Arguments:
        noise: beta of Eq. 1; 0 for none.
        orth: whether to orthogonalize (Eq. 2).
        start: L, the layer to start from, as an index counted from 1 (int) or as a share of the
            depth (float).
    """

    noise: float
    orth: bool
    start: int | float = 1

    def first_layer(self, layers: int) -> int:
        """L as an index counted from 1, for a model with so many layers."""
        return self.start if isinstance(self.start, int) else round(self.start * layers)


@dataclass(frozen=True)
class PostProcessed:
    """Post-processed weights by name, and the names of those that lacked full rank before."""

    tensors: dict[str, Tensor]
    rank_deficient: tuple[str, ...]


def post_process(
    graph: Graph,
    tensors: dict[str, Tensor],
    steps: PostProcessing,
    generator: torch.Generator,
) -> PostProcessed:
    """Apply the steps to every layer from L on, except classification layers.

    Arguments:
        graph: of the model; its order numbers the layers.
        tensors: predicted tensors by name; they are not changed.
        steps: what to do.
        generator: CPU generator of the noise.

    Returns: the tensors that changed.
    """
    layers = weight_layers(graph)
    heads = classifier_weights(graph)
    changed: dict[str, Tensor] = {}
    deficient = []
    for name in layers[max(0, steps.first_layer(len(layers)) - 1) :]:
        if name in heads or name not in tensors:
            continue
        if steps.noise > 0:
            changed[name] = add_noise(tensors[name], steps.noise, generator)
        if steps.orth:
            changed[name], lacked = orthogonalize(changed.get(name, tensors[name]))
            deficient += [name] if lacked else []
    return PostProcessed(changed, tuple(deficient))


def weight_layers(graph: Graph) -> list[str]:
    """Convolution and linear weights in the order of the graph, the classifier included.

    The l-th layer of the paper is element l - 1.
    """
    names = [n.param for n in graph.nodes if n.op in WEIGHTS and n.param is not None]
    return list(dict.fromkeys(names))


def classifier_weights(graph: Graph) -> set[str | None]:
    """Names of the classification layers' weights, which are never post-processed."""
    return {graph.nodes[weight].param for weight, _ in graph.classifiers}


def add_noise(weight: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """Conditional noise (second paper, Eq. 1): w + N(0, beta * sigma(r(w))).

    `beta * sigma` is the noise's standard deviation, sigma(r(w)) that of the entries of the K x K
    correlation matrix between the K output channels.

    Arguments:
        weight: two or more dimensions, output channels first.
        beta: scale of the noise.
        generator: a CPU generator: the same numbers on every device.
    """
    spread = beta * correlation_spread(weight)
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return weight + spread * noise.to(weight.device)


def correlation_spread(weight: Tensor) -> float:
    """Standard deviation of the K x K Pearson correlations between output channels.

    The matrix is not built. With the channels' standardised values in the rows of Z (K x M), its
    entries are those of Z Z^T: their sum is the squared norm of Z's column sums, the sum of their
    squares is the squared norm of the smaller of Z Z^T and Z^T Z. Constant channels correlate
    with nothing (0). A single channel has nothing to be told apart from: 0.
    """
    rows = weight.reshape(weight.shape[0], -1).to(torch.promote_types(weight.dtype, torch.float32))
    entries = rows.shape[0] ** 2
    if entries == 1:
        return 0.0
    z = torch.nn.functional.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
    gram = z @ z.t() if z.shape[0] <= z.shape[1] else z.t() @ z
    total = z.sum(dim=0).double().square().sum()
    squares = gram.double().square().sum()
    variance = (squares - total.square() / entries) / (entries - 1)
    return float(variance.clamp(min=0).sqrt())


def orthogonalize(weight: Tensor) -> tuple[Tensor, bool]:
    """Orthogonal re-initialization (second paper, Eq. 2): Q * sign(diag(R)), w = Q R.

    The weight as a matrix, output channels by the rest, gets orthonormal rows or columns,
    whichever are fewer. Householder QR gives an orthonormal Q whatever the rank; directions that
    a rank-deficient weight does not have are then arbitrary, though deterministic.

    Arguments:
        weight: two or more dimensions, output channels first.

    Returns: the new weight, and whether the old one was rank-deficient.
    """
    matrix = weight.reshape(weight.shape[0], -1)
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = torch.linalg.qr(matrix.t() if wide else matrix)
    diagonal = r.diagonal()
    q = q * torch.where(diagonal < 0, -1.0, 1.0).to(q.dtype)  # sign(0) = 0 would lose a direction
    size = diagonal.abs()
    # Rounding leaves about sqrt(size) eps where there should be a zero.
    tolerance = max(matrix.shape) ** 0.5 * torch.finfo(matrix.dtype).eps * size.max()
    deficient = bool((size <= tolerance).any())
    return (q.t() if wide else q).reshape(weight.shape).to(weight.dtype).contiguous(), deficient
