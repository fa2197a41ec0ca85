"""Tensors that are smaller than their parameter, and repeated along its first two axes."""

from __future__ import annotations

from torch import Tensor


def fill(target: Tensor, block: Tensor) -> None:
    """Write a block into a tensor, repeated along the first and the second axis, and cut.

    Arguments:
        target: of at least the block's size.
        block: as many dimensions.
    """
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
    """The block at a parameter's size."""
    if tuple(block.shape) == shape:
        return block
    whole = block.new_empty(shape)
    fill(whole, block)
    return whole
