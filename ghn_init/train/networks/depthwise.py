"""Depthwise convolution with a backward pass for bfloat16 on CPUs.

For 5x5 and for dilated kernels, PyTorch's own backward pass is up to sixty times slower than its
forward pass, and takes half of the training time of a hypernetwork. Worse, its weight gradient of
dilated kernels is wrong (torch 2.14: off by more than its own size, or infinite). Here both
gradients are computed by convolutions that have fast kernels: the gradient of the input by a
forward pass with the mirrored kernel, that of the weight by gradients of undilated 3x3 kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 3
"""Kernel size with a fast weight gradient."""


def depthwise_conv(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """`(B, C, H, W)` -> `(B, C, ceil(H / stride), ceil(W / stride))`, one kernel a channel.

    Arguments:
        x: feature maps.
        weight: `(C, 1, k, k)`, k odd.
        stride: of the output.
        dilation: distance between the positions that a kernel reads.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # else conv2d does it itself
        x, weight = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight))
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled():
        result: Tensor = _DepthwiseConv.apply(x, weight, stride, dilation)
        return result
    return _forward(x, weight, stride, dilation)


def _forward(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = (weight.shape[-1] - 1) * dilation // 2
    return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])


class _DepthwiseConv(torch.autograd.Function):
    """The operator with its own gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        return _forward(x, weight, stride, dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        if ctx.stride > 1:  # the same as a stride of 1 with zeros between
            spread = torch.zeros_like(x)
            spread[:, :, :: ctx.stride, :: ctx.stride] = grad
            grad = spread
        grad_x = _forward(grad, weight.flip(2, 3), 1, ctx.dilation)
        return grad_x, _weight_gradient(x, grad, weight.shape[-1], ctx.dilation), None, None


def _weight_gradient(x: Tensor, grad: Tensor, kernel: int, dilation: int) -> Tensor:
    """Gradient of a kernel, `(C, 1, kernel, kernel)`, from tiles of 3x3."""
    x, grad = _interleave(x, dilation), _interleave(grad, dilation)
    channels, (height, width) = x.shape[1], x.shape[2:]
    tiles = -(-kernel // _TILE)
    before = kernel // 2
    after = before + tiles * _TILE - kernel
    x = F.pad(x, (before, after, before, after))
    found = x.new_empty(channels, 1, tiles * _TILE, tiles * _TILE)
    like = x.new_empty(channels, 1, _TILE, _TILE)
    for top in range(0, tiles * _TILE, _TILE):
        for left in range(0, tiles * _TILE, _TILE):
            part = x[:, :, top : top + height + _TILE - 1, left : left + width + _TILE - 1]
            part = part.contiguous(memory_format=torch.channels_last)
            found[:, :, top : top + _TILE, left : left + _TILE] = _tile_gradient(part, grad, like)
    return found[:, :, :kernel, :kernel]


def _tile_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        [False, True, False],
    )[1]
    return result


def _interleave(x: Tensor, dilation: int) -> Tensor:
    """The `dilation`-spaced grids that an image is made of, as images of their own."""
    if dilation == 1:
        return x
    batch, channels, height, width = x.shape
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    height, width = x.shape[2] // dilation, x.shape[3] // dilation
    x = x.permute(0, 2, 3, 1).reshape(batch, height, dilation, width, dilation, channels)
    x = x.permute(2, 4, 0, 1, 3, 5).reshape(-1, height, width, channels)
    return x.permute(0, 3, 1, 2)
