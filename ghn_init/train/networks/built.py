"""Modules of libraries as target networks: traced, and run functionally.

A `BuiltNetwork` computes a module with predicted parameters: gradients flow to those. What the
graph leaves (class tokens, layer scale, tables of relative positions) stays as the library's
initialization, seeded, has made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ghn_init.graph.graph import Graph
from ghn_init.graph.tracing import trace
from ghn_init.train.networks.depthwise import depthwise_conv


class Buildable(Protocol):
    """What gives a module."""

    def build(self, num_classes: int, seed: int = 0, *, image_size: int) -> nn.Module:
        """The module, with its library's own initialization; the global RNG is left alone."""


class BuiltNetwork:
    """A module as a target network: its graph, and a function of the parameters in it.

    Batch normalization takes the statistics of the batch, and nothing is dropped.

    Arguments:
        net: what to build.
        num_classes: outputs.
        image_size: height and width of the images.

    Raises:
        GHNInitError: it cannot be built, or not for images of this size.
    """

    def __init__(self, net: Buildable, num_classes: int = 10, image_size: int = 32) -> None:
        self.net, self.num_classes, self.image_size = net, num_classes, image_size
        self._module = _prepared(net.build(num_classes, image_size=image_size))
        self._device = torch.device("cpu")

    @property
    def num_params(self) -> int:
        """Scalars in all parameters."""
        return sum(p.numel() for p in self._module.parameters())

    @cached_property
    def graph(self) -> Graph:
        """What the hypernetwork reads."""
        size = self.image_size
        return trace(self._module, torch.empty(2, 3, size, size, device="meta"))

    def __call__(self, images: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Forward pass.

        Arguments:
            images: `(B, 3, image_size, image_size)`.
            params: the parameters that the graph carries, by name.

        Returns: logits, `(B, num_classes)`.
        """
        if self._device != images.device:
            self._device = images.device
            self._module._apply(lambda t: t if t.is_meta else t.to(images.device))
        # Of the vectors predicted in bfloat16, norms take none: they come as float32.
        given = {name: p.float() if p.dim() == 1 else p for name, p in params.items()}
        logits: Tensor = functional_call(self._module, given, (images,))
        return logits

    def random_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The library's own initialization of the parameters that the graph carries."""
        seed = int(torch.randint(2**31, (), generator=generator))
        module = self.net.build(self.num_classes, seed, image_size=self.image_size)
        own = dict(module.named_parameters())
        return {n: p.detach() for n, p in own.items() if n not in self.graph.left}

    def forget(self) -> None:
        """Free the memory of all that is predicted: its own values are never used."""
        own, left = dict(self._module.named_parameters()), self.graph.left
        empty = {
            id(p): nn.Parameter(p.to("meta"), False) for name, p in own.items() if name not in left
        }
        for part in self._module.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = empty.get(id(p), p)


def _prepared(module: nn.Module) -> nn.Module:
    """A module to be computed with other parameters than its own."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):  # without running statistics it takes the batch's
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
        elif type(part) is nn.Conv2d and _is_depthwise(part):
            part.forward = partial(_depthwise, part)  # type: ignore[method-assign]
        elif getattr(part, "fused_attn", False):  # its backward pass is slow on CPUs in bfloat16
            part.fused_attn = False  # type: ignore[assignment]
    return module.requires_grad_(False).eval()


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether `depthwise_conv` computes it."""
    height, width = conv.kernel_size
    same = conv.padding == ((height - 1) // 2, (width - 1) // 2)
    square = height == width and height % 2 == 1 and conv.dilation == (1, 1)
    one_stride = conv.stride[0] == conv.stride[1]
    one_kernel_each = conv.groups == conv.in_channels == conv.out_channels > 1
    return same and square and one_stride and one_kernel_each


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if x.is_meta:
        return nn.Conv2d.forward(conv, x)
    out = depthwise_conv(x, conv.weight, conv.stride[0], 1)
    return out if conv.bias is None else out + conv.bias.to(out.dtype)[:, None, None]
