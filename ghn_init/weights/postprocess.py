"""Conditional noise and orthogonal re-initialization of predicted weights (second paper)."""

from __future__ import annotations

import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.devices import moved
from ghn_init.graph.graph import WEIGHTS, Graph
from ghn_init.progress import Progress
from ghn_init.weights.parallel import side_by_side
from ghn_init.weights.tiling import repeated

_GRAM_BLOCK = 128

_MOST_TOGETHER = 2**28
"""Numbers in the layers that a GPU changes together."""


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
    """What was post-processed.

    Arguments:
        tensors: the weights by name, in case nothing else took them.
        names: of the weights.
        rank_deficient: names of those that lacked full rank before.
    """

    tensors: dict[str, Tensor]
    names: tuple[str, ...] = ()
    rank_deficient: tuple[str, ...] = ()


Store = Callable[[str, Tensor], None]
"""Takes a tensor that is complete, with its name, and may be called from any thread."""


@dataclass(frozen=True)
class _Layer:
    """A layer to post-process.

    Arguments:
        tensor: predicted; it may still have to be repeated.
        shape: of the weight.
        seed: of its noise, so that no layer waits for the noise of another.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    seed: int

    @property
    def cost(self) -> float:
        """What its QR decomposition takes, but for a factor."""
        size = math.prod(self.shape)
        return float(size * min(self.shape[0], size // self.shape[0]))


def post_process(
    graph: Graph,
    tensors: dict[str, Tensor],
    steps: PostProcessing,
    generator: torch.Generator,
    store: Store | None = None,
    silent: bool = True,
) -> PostProcessed:
    """Apply the steps to every layer from L on, except classification layers.

    Arguments:
        graph: of the model; its order numbers the layers.
        tensors: predicted tensors by name; they are not changed.
        steps: what to do.
        generator: CPU generator of the noise.
        store: takes each weight as soon as it is done, so that no more of them are in memory than
            are worked on. Default: they are all returned.
        silent: show no progress.

    Returns: the tensors that changed.
    """
    if not (steps.noise > 0 or steps.orth):
        return PostProcessed({})
    heads = classifier_weights(graph)
    late = weight_layers(graph)
    late = late[max(0, steps.first_layer(len(late)) - 1) :]
    late = [name for name in late if name not in heads]
    # Every layer has its seed, changed or not: what is left does not alter the noise of others.
    seeds = torch.randint(2**62, (len(late),), generator=generator).tolist()
    layers = {
        n: _Layer(tensors[n], graph.shapes[n], seed)
        for n, seed in zip(late, seeds, strict=True)
        if n in tensors
    }
    done: dict[str, Tensor] = {}
    put, lock = store or done.__setitem__, threading.Lock()
    with Progress(len(layers), "layer", silent=silent) as progress:

        def change(names: Sequence[str]) -> list[Tensor]:
            weights, lacked = _changed([layers[name] for name in names], steps)
            with lock:
                for name, weight in zip(names, weights, strict=True):
                    put(name, weight)
                progress.step(len(names))
            return lacked

        flags = _each(change, layers)
    deficient = torch.stack(list(flags.values())).tolist() if flags else []
    return PostProcessed(
        {name: done[name] for name in layers if name in done},
        tuple(layers),
        tuple(itertools.compress(flags, deficient)),
    )


def _each(
    change: Callable[[Sequence[str]], list[Tensor]], layers: Mapping[str, _Layer]
) -> dict[str, Tensor]:
    """Change all layers: a CPU several side by side; a GPU, which has room for them, those of one
    shape together.

    Returns: for each layer what `change` gives for it.
    """
    if not any(layer.tensor.is_cuda for layer in layers.values()):
        flags = side_by_side(
            lambda name: change([name])[0], list(layers), lambda name: layers[name].cost
        )
        return dict(zip(layers, flags, strict=True))
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, layer in layers.items():
        alike[layer.shape].append(name)
    found: dict[str, Tensor] = {}
    for shape, names in alike.items():
        together = max(1, _MOST_TOGETHER // math.prod(shape))
        for start in range(0, len(names), together):
            some = names[start : start + together]
            found |= zip(some, change(some), strict=True)
    return {name: found[name] for name in layers}


def _changed(layers: Sequence[_Layer], steps: PostProcessing) -> tuple[list[Tensor], list[Tensor]]:
    """New weights for layers of one shape on one device, and for each if it lacked full rank."""
    weights = [repeated(layer.tensor, layer.shape) for layer in layers]
    if steps.noise > 0:
        for i, layer in enumerate(layers):
            generator = torch.Generator().manual_seed(layer.seed)
            weights[i] = add_noise(weights[i], steps.noise, generator)
    if not steps.orth:
        return weights, [weight.new_zeros((), dtype=torch.bool) for weight in weights]
    batch, lacked = orthogonalize(weights[0][None] if len(weights) == 1 else torch.stack(weights))
    return list(batch.unbind()), list(lacked.unbind())


def without_factors(tensors: dict[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Weights -> parameters, where the model multiplies parameters by a constant before use.

    Equalized learning rates (Karras et al., 2018, https://arxiv.org/abs/1710.10196, Section 4.1)
    scale a parameter of variance 1 to a weight of the usual size.
    """
    scaled = {n: tensors[n] / factor for n, factor in graph.factors.items() if n in tensors}
    return tensors | scaled


def weight_layers(graph: Graph) -> list[str]:
    """Convolution and linear weights in the order of the graph, the classifier included.

    The l-th layer of the paper is element l - 1.
    """
    names = [n.param for n in graph.nodes if n.op in WEIGHTS and n.param is not None]
    return list(dict.fromkeys(names))


def classifier_weights(graph: Graph) -> set[str | None]:
    """Names of the weights that are never post-processed: the classification layer's.

    It is all last layers in a model that has none, as a detector. Beside a classification layer,
    auxiliary ones are ordinary layers, as in the published implementation.
    """
    if not graph.classifiers:
        return {weight for weight, _ in graph.heads or ()}
    return {graph.nodes[weight].param for weight, _ in graph.classifiers}


def hidden_layers(graph: Graph) -> list[str]:
    """The same without the classification layers: what post-processing may change."""
    heads = classifier_weights(graph)
    return [name for name in weight_layers(graph) if name not in heads]


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
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device="cpu")
    return moved(noise, weight.device).mul_(spread).add_(weight)


def correlation_spread(weight: Tensor) -> Tensor:
    """Standard deviation of the K x K Pearson correlations between output channels.

    The matrix is not built. With the channels' standardized values in the rows of Z (K x M), its
    entries are those of Z Z^T: their sum is the squared norm of Z's column sums, the sum of their
    squares is the squared norm of the smaller of Z Z^T and Z^T Z. Constant channels correlate
    with nothing (0). A single channel has nothing to be told apart from: 0.

    Returns: no dimensions, float64; a GPU is not waited for.
    """
    rows = weight.reshape(weight.shape[0], -1).to(torch.promote_types(weight.dtype, torch.float32))
    entries = rows.shape[0] ** 2
    if entries == 1:
        return rows.new_zeros((), dtype=torch.float64)
    z = rows - rows.mean(dim=1, keepdim=True)
    z.div_(torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(1e-12))
    total = z.sum(dim=0).double().square().sum()
    squares = _squared_norm_of_gram(z if z.shape[0] <= z.shape[1] else z.t())
    return ((squares - total.square() / entries) / (entries - 1)).clamp_(min=0).sqrt()


def _squared_norm_of_gram(z: Tensor) -> Tensor:
    """Squared norm of Z Z^T, which is symmetric: what is above the diagonal is not computed."""
    squares = z.new_zeros((), dtype=torch.float64)
    for start in range(0, len(z), _GRAM_BLOCK):
        block = z[start:] @ z[start : start + _GRAM_BLOCK].t()
        block = block.double().square_()
        squares += 2 * block.sum() - block[:_GRAM_BLOCK].sum()
    return squares


def orthogonalize(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal re-initialization (second paper, Eq. 2): Q * sign(diag(R)), w = Q R.

    A weight as a matrix, output channels by the rest, gets orthonormal rows or columns,
    whichever are fewer. Householder QR gives an orthonormal Q whatever the rank; directions that
    a rank-deficient weight does not have are then arbitrary, though deterministic.

    Arguments:
        weights: `(N, out, ...)`, N weights of one shape, output channels first.

    Returns: the new weights, and for each whether the old one was rank-deficient.
    """
    matrices = weights.reshape(*weights.shape[:2], -1)
    matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    wide = matrices.shape[1] < matrices.shape[2]
    q, r = torch.linalg.qr(matrices.mT if wide else matrices)
    diagonal = r.diagonal(dim1=1, dim2=2)
    q.mul_(torch.where(diagonal < 0, -1.0, 1.0)[:, None])  # sign(0) = 0 would lose a direction
    sizes = diagonal.abs()
    # Rounding leaves about sqrt(size) eps where there should be a zero.
    tolerance = max(matrices.shape[1:]) ** 0.5 * torch.finfo(matrices.dtype).eps
    deficient = (sizes <= tolerance * sizes.amax(1, keepdim=True)).any(1)
    return (q.mT if wide else q).reshape(weights.shape).to(weights.dtype).contiguous(), deficient
