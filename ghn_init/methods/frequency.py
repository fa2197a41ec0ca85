"""FRONT: the low frequencies of a trained model's weights, at another size.

Shen et al., "Breaking the Scale Barrier: One-Shot Knowledge Transfer via Frequency Transform", ICML
2026, https://arxiv.org/abs/2603.07523. Each weight is a matrix, and those of one role in all blocks
are a stack of them. A discrete cosine transform over both axes and over the depth is cut to the
size that is wanted, or filled up with zeros, and turned back.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_init.methods.matching import Matching, Shape, match, numbered
from ghn_init.methods.method import Given, Job, Method
from ghn_init.methods.selection import account
from ghn_init.methods.source import Source, open_source


def front(job: Job) -> Given:
    """What the source has for each parameter, brought to this model's size.

    Of blocks with parameters of one size it is the stack that is resized, by depth as well. The
    source may be smaller or larger: what is missing of the frequencies is zero.
    """
    source = open_source(job.source)
    found = match(job, source, _has_as_many_axes, deeper=True)
    shapes = {name: job.graph.shapes[name] for name in (*found.names, *found.deeper)}
    tensors: dict[str, Tensor] = {}
    for stack in [_Stack((name,)) for name in shapes] if found.by_graph else _stacks(shapes):
        layers = [source.tensor(name) for name in _stack_there(stack, found, source)]
        if layers:
            new = resized(layers, len(stack.names), shapes[stack.names[0]])
            tensors |= dict(zip(stack.names, new, strict=True))
    taken, notes = account(found, source, tensors)
    blocks = {name: f"{source.name}'s other blocks" for name in tensors if name not in taken}
    return Given(tensors, found.left, taken | blocks, notes)


def _has_as_many_axes(shape: Shape, other: Shape) -> bool:
    return len(shape) == len(other)


def resized(layers: Sequence[Tensor], depth: int, shape: Shape) -> list[Tensor]:
    """Matrices of one role at another size, and in another number.

    Each is normalized before, and gets its mean and deviation back afterwards, those of the layer
    in the same place. The transform is not scaled: with n of N frequencies along an axis, what is
    turned back is N / n times as large, as in the authors' code.

    Arguments:
        layers: tensors of one shape, in the order of the blocks.
        depth: how many are wanted. One is made of the first layer alone.
        shape: of each of them. A convolution is the matrix (out * in, kernel).
    """
    layers = layers if depth > 1 else layers[:1]
    means = [layer.mean() for layer in layers]
    deviations = [layer.std() if layer.numel() > 1 else layer.new_zeros(()) for layer in layers]
    stack = []
    for layer, mean, deviation in zip(layers, means, deviations, strict=True):
        matrix = _as_matrix((layer - mean) / (deviation + 1e-8))
        rows, columns = _matrix_shape(shape)
        stack.append(_resized_axis(_resized_axis(matrix, 1, columns), 0, rows))
    new = _resized_axis(torch.stack(stack), 0, depth).reshape(depth, *shape)
    last = len(layers) - 1
    return [tensor * deviations[min(i, last)] + means[min(i, last)] for i, tensor in enumerate(new)]


# -- stacks of blocks


@dataclass(frozen=True)
class _Stack:
    """Parameters of one role and size in a row of blocks.

    Arguments:
        names: in the order of the blocks.
        place: which of the numbers in their names is the block's, counted from the last (-1).
    """

    names: tuple[str, ...]
    place: int = -1


def _stacks(shapes: Mapping[str, Shape]) -> list[_Stack]:
    """The stacks, each parameter in one of them.

    Of several numbers in a name (a stage's, a block's) it is the one with most parameters alike.
    """
    groups: dict[tuple[str, Shape], list[tuple[int, str]]] = defaultdict(list)
    for name, shape in shapes.items():
        for key, number in numbered(name):
            groups[key, shape].append((number, name))
    stacks: dict[_Stack, None] = {}
    for name, shape in shapes.items():
        keys = [key for key, _ in numbered(name)]
        if not keys:
            stacks[_Stack((name,))] = None
            continue
        key = max(keys, key=lambda key: len(groups[key, shape]))
        members = sorted(groups[key, shape])
        stacks[_Stack(tuple(n for _, n in members), keys.index(key) - len(keys))] = None
    return list(stacks)


def _stack_there(stack: _Stack, found: Matching, source: Source) -> list[str]:
    """The source's parameters that correspond to a stack's, of all of its blocks."""
    known = [found.names[name] for name in stack.names if name in found.names]
    if len(stack.names) == 1 or not known:
        return known
    key, shape = numbered(known[0])[stack.place][0], source.tensors[known[0]].shape
    members = [
        (number, name)
        for name, tensor in source.tensors.items()
        for other, number in numbered(name)
        if other == key and tensor.shape == shape
    ]
    return [name for _, name in sorted(members)]


# -- the transform


def _matrix_shape(shape: Shape) -> tuple[int, int]:
    if len(shape) < 2:
        return 1, math.prod(shape)
    columns = math.prod(shape[2:]) if len(shape) > 2 else shape[1]
    return math.prod(shape) // columns, columns


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(_matrix_shape(tuple(tensor.shape)))


def _resized_axis(tensor: Tensor, axis: int, size: int) -> Tensor:
    """The lowest frequencies along an axis, as many as it shall have entries."""
    tensor = tensor.transpose(axis, -1)
    if (old := tensor.shape[-1]) != size:
        kept = frequencies(tensor)[..., : min(old, size)]
        tensor = from_frequencies(torch.nn.functional.pad(kept, (0, size - kept.shape[-1])))
    return tensor.transpose(axis, -1)


def frequencies(tensor: Tensor) -> Tensor:
    """The DCT-II along the last axis: X_k = sum_n x_n cos(pi (2 n + 1) k / (2 N))."""
    size = tensor.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([tensor, tensor.flip(-1)], -1))[..., :size]
    angle = torch.arange(size, dtype=tensor.dtype) * (math.pi / (2 * size))
    found: Tensor = (spectrum * torch.polar(torch.ones_like(angle), -angle)).real / 2
    return found


def from_frequencies(spectrum: Tensor) -> Tensor:
    """Its inverse: x_n = (X_0 + 2 sum_k X_k cos(pi (2 n + 1) k / (2 N))) / N."""
    size = spectrum.shape[-1]
    angle = torch.arange(size, dtype=spectrum.dtype) * (math.pi / (2 * size))
    turned = spectrum * torch.polar(torch.ones_like(angle), angle)
    found: Tensor = 2 * torch.fft.irfft(torch.nn.functional.pad(turned, (0, 1)), n=2 * size)
    return found[..., :size]


FRONT = Method(
    name="front",
    values=front,
    summary="the low frequencies of a trained model's weights, at this model's size",
    paper="Shen et al., 2026, https://arxiv.org/abs/2603.07523",
    source=True,
)
