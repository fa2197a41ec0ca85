"""The layers of target networks: what each holds, which nodes it is, what it computes.

Layers hold no parameters: they name them, and find them in the mapping that they are called with.
Predicted tensors flow in that way, and gradients back, without a copy or a module in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_init.graph.graph import Node
from ghn_init.train.networks.depthwise import depthwise_conv

Shape = tuple[int, ...]
Params = Mapping[str, Tensor]

HEADS = 8
"""Attention heads of every `msa` primitive."""


class Layer:
    """One operation."""

    joins = False
    """Whether it is a node only where data from more than one node meet (sum, concat, cse)."""

    reduction: float = 1
    """How many positions of its input there are for one of its output; infinite: one is left."""

    def shapes(self) -> dict[str, Shape]:
        """Its parameters."""
        return {}

    def nodes(self) -> tuple[Node, ...]:
        """Its nodes in a graph; each one follows the one before."""
        return ()

    def macs(self, positions: float) -> float:
        """Multiplications for an image, where the output has so many positions."""
        return positions * sum(math.prod(shape) for shape in self.shapes().values())

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        """Compute it; `params` has all parameters of the network."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Conv(Layer):
    """Convolution without bias, `(out, in / groups, height, width)`."""

    name: str
    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    @property
    def reduction(self) -> float:  # type: ignore[override]
        return math.prod(self.stride)

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": self.shape}

    def nodes(self) -> tuple[Node, ...]:
        op = "conv" if self.groups == 1 else "dil_conv" if self.dilation > 1 else "sep_conv"
        return (Node(op, f"{self.name}.weight", self.shape),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        weight = params[f"{self.name}.weight"]
        if self.groups > 1:
            return depthwise_conv(inputs[0], weight, self.stride[0], self.dilation)
        return F.conv2d(inputs[0], weight, None, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, slots=True)
class Linear(Layer):
    """Linear layer on the last axis."""

    name: str
    in_features: int
    out_features: int
    bias: bool = True

    def shapes(self) -> dict[str, Shape]:
        weight = {f"{self.name}.weight": (self.out_features, self.in_features)}
        return {**weight, f"{self.name}.bias": (self.out_features,)} if self.bias else {**weight}

    def nodes(self) -> tuple[Node, ...]:
        ops = ("conv", "bias")
        return tuple(
            Node(op, name, s) for op, (name, s) in zip(ops, self.shapes().items(), strict=False)
        )

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        bias = params[f"{self.name}.bias"] if self.bias else None
        return F.linear(inputs[0], params[f"{self.name}.weight"], bias)


@dataclass(frozen=True, slots=True)
class BatchNorm(Layer):
    """Batch normalization with the statistics of the batch, in training and in evaluation."""

    name: str
    channels: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": (self.channels,), f"{self.name}.bias": (self.channels,)}

    def nodes(self) -> tuple[Node, ...]:
        return (Node("bn", f"{self.name}.weight", (self.channels,), f"{self.name}.bias"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        weight, bias = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        return F.batch_norm(inputs[0], None, None, weight.float(), bias.float(), training=True)


@dataclass(frozen=True, slots=True)
class LayerNorm(Layer):
    """Layer normalization over the last axis."""

    name: str
    channels: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": (self.channels,), f"{self.name}.bias": (self.channels,)}

    def nodes(self) -> tuple[Node, ...]:
        return (Node("ln", f"{self.name}.weight", (self.channels,), f"{self.name}.bias"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        weight, bias = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        return F.layer_norm(inputs[0], (self.channels,), weight, bias)


@dataclass(frozen=True, slots=True)
class PositionalEmbedding(Layer):
    """The embedding itself, `(1, channels, side, side)`; a `Sum` adds it."""

    name: str
    channels: int
    side: int

    def shapes(self) -> dict[str, Shape]:
        return {f"{self.name}.weight": (1, self.channels, self.side, self.side)}

    def nodes(self) -> tuple[Node, ...]:
        ((name, shape),) = self.shapes().items()
        return (Node("pos_enc", name, shape),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return params[f"{self.name}.weight"]


@dataclass(frozen=True, slots=True)
class Pool(Layer):
    """Pooling over 3x3 windows; positions outside of the image do not count."""

    kind: str  # "max_pool" or "avg_pool"
    stride: int

    @property
    def reduction(self) -> float:  # type: ignore[override]
        return self.stride**2

    def nodes(self) -> tuple[Node, ...]:
        return (Node(self.kind, shape=(1, 1, 3, 3)),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        if self.kind == "max_pool":
            return F.max_pool2d(inputs[0], 3, self.stride, padding=1)
        return F.avg_pool2d(inputs[0], 3, self.stride, padding=1, count_include_pad=False)


class GlobalPool(Layer):
    """Mean over all positions."""

    reduction = math.inf

    def nodes(self) -> tuple[Node, ...]:
        return (Node("glob_avg"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(inputs[0], 1).flatten(1)


@dataclass(frozen=True, slots=True)
class Attention(Layer):
    """Multi-head self-attention: queries, keys and values side by side in the last axis."""

    width: int

    def macs(self, positions: float) -> float:
        return 2 * positions**2 * self.width

    def nodes(self) -> tuple[Node, ...]:
        return (Node("msa"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        batch, tokens, width = inputs[0].shape
        qkv = inputs[0].view(batch, tokens, 3, HEADS, width // (3 * HEADS))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if q.device.type == "cpu":  # heads of few channels: five times faster than the fused kernel
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        joined: Tensor = out.transpose(1, 2).reshape(batch, tokens, width // 3)
        return joined


class Sum(Layer):
    """Sum of two tensors."""

    joins = True

    def nodes(self) -> tuple[Node, ...]:
        return (Node("sum"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


class Concat(Layer):
    """Concatenation of feature maps along their channels; of one, itself."""

    joins = True

    def nodes(self) -> tuple[Node, ...]:
        return (Node("concat"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1) if len(inputs) > 1 else inputs[0]


class Gate(Layer):
    """Feature maps times a factor for each channel: the end of squeeze and excitation."""

    joins = True

    def nodes(self) -> tuple[Node, ...]:
        return (Node("cse"),)

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        features, factors = inputs
        return features * factors[:, :, None, None]


@dataclass(frozen=True, slots=True)
class Apply(Layer):
    """A function without parameters, which is no node."""

    function: Callable[[Tensor], Tensor]
    reduction: float = 1

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0])


@dataclass(frozen=True, slots=True)
class Subsample(Layer):
    """Every `stride`-th position."""

    stride: int

    @property
    def reduction(self) -> float:  # type: ignore[override]
        return self.stride**2

    def __call__(self, params: Params, *inputs: Tensor) -> Tensor:
        return inputs[0][:, :, :: self.stride, :: self.stride]


def squeeze(x: Tensor) -> Tensor:
    """`(B, C, H, W)` -> `(B, C)`: the mean over all positions."""
    return x.flatten(2).mean(2)


def to_tokens(x: Tensor) -> Tensor:
    """`(B, C, H, W)` -> `(B, H * W, C)`."""
    return x.flatten(2).transpose(1, 2)


def to_image(x: Tensor) -> Tensor:
    """`(B, S * S, C)` -> `(B, C, S, S)`."""
    batch, tokens, channels = x.shape
    side = math.isqrt(tokens)
    return x.transpose(1, 2).reshape(batch, channels, side, side)


def shifted(x: Tensor) -> Tensor:
    """Without the first row and column: the second half of a factorized reduction.

    Its strided convolution then reads every other position from the second one on. For images of
    an odd size a row and a column of zeros is added, so that both halves come out as large.
    """
    odd = x.shape[-1] % 2
    return F.pad(x[:, :, 1:, 1:], (0, odd, 0, odd)) if odd else x[:, :, 1:, 1:]
