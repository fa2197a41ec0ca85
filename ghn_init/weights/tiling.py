"""Tensors that are smaller than their parameter are repeated along its first two axes.

A hypernetwork decodes at most `C` output and input channels (GHN-2 paper, Section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def fill(target: Tensor, block: Tensor) -> None:
    """Write a block into a tensor, repeated along the first and the second axis, and cut.

    Arguments:
        target: of at least the block's size.
        block: as many dimensions.
    """
    if target.shape == block.shape:
        target.copy_(block)
        return
    target[tuple(map(slice, block.shape))] = block
    rows = target[: block.shape[0]]
    if block.dim() > 1:
        _double(rows, 1, block.shape[1])
    _double(target, 0, block.shape[0])


def _double(target: Tensor, axis: int, done: int) -> None:
    """Repeat the first entries of an axis until it is full: large copies, and few of them."""
    size = target.shape[axis]
    while done < size:
        step = min(done, size - done)
        target.narrow(axis, done, step).copy_(target.narrow(axis, 0, step))
        done += step


def repeated(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The block at a parameter's size. Gradients flow back to it."""
    if tuple(block.shape) == shape:
        return block
    whole = block.new_empty(shape)
    fill(whole, block)
    return whole


def repeated_all(
    blocks: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """All blocks at their parameters' sizes, by name."""
    return {name: repeated(block, shapes[name]) for name, block in blocks.items()}
