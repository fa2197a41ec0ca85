"""Architecture -> layers: a network is written down as one list, stem, cells and head in turn."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ghn_init.images.constants import LARGE_IMAGES
from ghn_init.train.networks.genotypes import Architecture
from ghn_init.train.networks.layers import (
    HEADS,
    Apply,
    Attention,
    BatchNorm,
    Concat,
    Conv,
    Gate,
    GlobalPool,
    Layer,
    LayerNorm,
    Linear,
    Pool,
    PositionalEmbedding,
    Shape,
    Subsample,
    Sum,
    shifted,
    squeeze,
    to_image,
    to_tokens,
)

Step = tuple[Layer, tuple[int, ...]]
"""A layer, and the values that it reads."""

Value = int | None
"""What a layer reads: 0 is the images, n what step n - 1 computes, None what `none` has cut off."""

Channels = tuple[int, int]
"""Of a layer's input and output."""


class Compiler:
    """Writes the layers of a network one after the other.

    A layer behind an edge that `none` has cut has parameters, and is never computed.
    """

    def __init__(
        self, architecture: Architecture, num_classes: int, image_size: int, dropout: float
    ) -> None:
        self.architecture, self.num_classes = architecture, num_classes
        self.size, self.large = image_size, image_size >= LARGE_IMAGES
        self.dropout = dropout
        self.steps: list[Step] = []
        self.shapes: dict[str, Shape] = {}
        self._relus: dict[int, int] = {}

    def network(self) -> Value:
        """Stem, cells, head; the value of the logits."""
        a = self.architecture
        s0, s1, before, last = self._stem()
        channels, halved = a.channels, a.stem_type == 1
        x: Value = s1
        for i in range(a.n_cells):
            reduces = i > 0 and i in (a.n_cells // 3, 2 * a.n_cells // 3)
            if reduces:
                channels *= a.channel_mult
                self._halve()
            widths = (before, last, channels)
            x = self._cell(f"cells.{i}", (s0, s1), widths, reduces, halved)
            s0, s1, halved = s1, x, reduces
            cell = a.reduce if reduces else a.normal
            before, last = last, channels * len(cell.concat)
        return self._head(x, last)

    # -- single layers

    def _emit(self, layer: Layer, *inputs: Value) -> Value:
        """A layer that reads these values; what it computes."""
        self.shapes.update(layer.shapes())
        known = tuple(i for i in inputs if i is not None)
        if len(known) < len(inputs):
            return None
        self.steps.append((layer, known))
        return len(self.steps)

    def _conv(
        self,
        name: str,
        x: Value,
        channels: Channels,
        kernel: int | tuple[int, int],
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        padding: int | None = None,
    ) -> Value:
        """A convolution that keeps the size, but for its stride; channels are (in, out)."""
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        pads = ((height - 1) * dilation // 2, (width - 1) * dilation // 2)
        if padding is not None:
            pads = (padding, padding)
        strides = (stride if height > 1 else 1, stride if width > 1 else 1)
        if height == width:
            strides = (stride, stride)
        groups = channels[0] if depthwise else 1
        shape = (channels[1], channels[0] // groups, height, width)
        return self._emit(Conv(name, shape, strides, pads, dilation, groups), x)

    def _norm(self, name: str, x: Value, channels: int) -> Value:
        return self._emit(BatchNorm(name, channels), x) if self.architecture.norm else x

    def _relu(self, x: Value) -> Value:
        """Computed once for all layers that read the same value."""
        if x is None:
            return None
        if x not in self._relus:
            self.steps.append((Apply(F.relu), (x,)))
            self._relus[x] = len(self.steps)
        return self._relus[x]

    def _halve(self, times: int = 1) -> None:
        if not self.architecture.has_attention:
            for _ in range(times):
                self.size = -(-self.size // 2)

    # -- stem

    def _stem(self) -> tuple[Value, Value, int, int]:
        """The two inputs of the first cell, and their channels."""
        a, images = self.architecture, 0
        if a.has_attention:
            patch = 16 if self.large else 3
            padding = 0 if self.large else 1
            self.size = (self.size + 2 * padding - patch) // patch + 1
            x = self._conv("stem.conv", images, (3, a.channels), patch, patch, padding=padding)
            embedding = self._emit(PositionalEmbedding("stem.pos_enc", a.channels, self.size))
            x = self._emit(Sum(), x, embedding)
            return x, x, a.channels, a.channels
        return self._plain_stem(images) if a.stem_type == 0 else self._deep_stem(images)

    def _plain_stem(self, x: Value) -> tuple[Value, Value, int, int]:
        a = self.architecture
        channels = a.channels * (3 if a.preproc and not self.large else 1)
        stride = a.stem_stride if self.large else 1
        x = self._conv("stem.conv", x, (3, channels), a.stem_kernel, stride)
        x = self._norm("stem.norm", x, channels)
        self._halve(stride.bit_length() - 1)
        if a.stem_pool:
            x = self._emit(Pool("max_pool", 2), x)
            self._halve()
        return x, x, channels, channels

    def _deep_stem(self, x: Value) -> tuple[Value, Value, int, int]:
        c, stride = self.architecture.channels, 2 if self.large else 1
        x = self._conv("stem.0.conv", x, (3, c // 2), self.architecture.stem_kernel, stride)
        x = self._relu(self._norm("stem.0.norm", x, c // 2))
        x = self._conv("stem.1.conv", x, (c // 2, c), 3, stride)
        s0 = self._norm("stem.1.norm", x, c)
        x = self._conv("stem.2.conv", self._relu(s0), (c, c), 3, 2)
        self._halve(2 * stride - 1)
        return s0, self._norm("stem.2.norm", x, c), c, c

    # -- cells

    def _cell(
        self,
        name: str,
        inputs: tuple[Value, Value],
        widths: tuple[int, int, int],
        reduces: bool,
        halved: bool,
    ) -> Value:
        """One cell.

        Arguments:
            name: prefix of its parameters.
            inputs: the outputs of the last cell but one, and of the last.
            widths: their channels, and those of the cell's states.
            reduces: whether it is the reduction cell.
            halved: whether the first input is twice as large as the second.
        """
        a, (before, last, channels) = self.architecture, widths
        cell = a.reduce if reduces else a.normal
        states = list(self._inputs(name, inputs, (before, last, channels), halved))
        for i in range(0, len(cell.edges), 2):
            ends = []
            for j in (i, i + 1):
                primitive, source = cell.edges[j]
                stride = 2 if reduces and source < 2 and not a.has_attention else 1
                width = channels if a.preproc or source > 1 else last
                label = f"{name}.edges.{j}"
                ends.append(
                    self._primitive(label, primitive, states[source], width, channels, stride)
                )
            states.append(self._sum(*ends))
        return self._concat([states[i] for i in cell.concat])

    def _inputs(
        self,
        name: str,
        inputs: tuple[Value, Value],
        widths: tuple[int, int, int],
        halved: bool,
    ) -> tuple[Value, Value]:
        """The cell's inputs, brought to one size, and with `preproc` to its channels."""
        (s0, s1), (before, last, channels) = inputs, widths
        halved = halved and not self.architecture.has_attention
        if not self.architecture.preproc:
            return (self._emit(Subsample(2), s0) if halved else s0), s1
        if halved:
            s0 = self._factorized(f"{name}.preproc0", s0, (before, channels))
        else:
            s0 = self._relu_conv(f"{name}.preproc0", s0, (before, channels), 1)
        return s0, self._relu_conv(f"{name}.preproc1", s1, (last, channels), 1)

    def _sum(self, left: Value, right: Value) -> Value:
        if left is None or right is None:
            return right if left is None else left
        return self._emit(Sum(), left, right)

    def _concat(self, states: list[Value]) -> Value:
        """States that `none` has cut off count as zeros, unless all of them are."""
        known = next((state for state in states if state is not None), None)
        if known is None:
            return None
        if None in states:
            zeros = self._emit(Apply(torch.zeros_like), known)
            states = [zeros if state is None else state for state in states]
        return self._emit(Concat(), *states)

    # -- primitives

    def _primitive(
        self, name: str, primitive: str, x: Value, inp: int, out: int, stride: int
    ) -> Value:
        """What one edge of a cell computes."""
        channels = (inp, out)
        if primitive == "none":
            return None
        if primitive == "skip_connect":
            return x if stride == 1 else self._factorized(name, x, channels)
        if primitive.endswith("pool_3x3"):
            return self._emit(Pool(primitive.removesuffix("_3x3"), stride), x)
        if primitive == "conv_7x1_1x7":
            return self._row_column(name, x, channels, stride)
        if primitive == "msa":
            return self._transformer(name, x, inp)
        if primitive == "cse":
            return self._squeeze_excitation(name, x, inp, stride)
        kernel = int(primitive[-1])
        if primitive.startswith("conv"):
            return self._relu_conv(name, x, channels, kernel, stride)
        if primitive.startswith("dil_conv"):
            return self._depthwise(name, x, channels, kernel, stride, dilation=2)
        x = self._depthwise(f"{name}.0", x, (inp, inp), kernel, stride)
        return self._depthwise(f"{name}.1", x, channels, kernel)

    def _relu_conv(
        self, name: str, x: Value, channels: Channels, kernel: int, stride: int = 1
    ) -> Value:
        x = self._conv(f"{name}.conv", self._relu(x), channels, kernel, stride)
        return self._norm(f"{name}.norm", x, channels[1])

    def _row_column(self, name: str, x: Value, channels: Channels, stride: int) -> Value:
        """A 1x7 convolution followed by a 7x1 one."""
        x = self._conv(f"{name}.row", self._relu(x), (channels[0], channels[0]), (1, 7), stride)
        x = self._conv(f"{name}.column", x, channels, (7, 1), stride)
        return self._norm(f"{name}.norm", x, channels[1])

    def _depthwise(
        self,
        name: str,
        x: Value,
        channels: Channels,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> Value:
        """A depthwise convolution followed by a 1x1 one."""
        inp, out = channels
        x = self._relu(x)
        x = self._conv(f"{name}.depthwise", x, (inp, inp), kernel, stride, dilation, True)
        x = self._conv(f"{name}.pointwise", x, (inp, out), 1)
        return self._norm(f"{name}.norm", x, out)

    def _factorized(self, name: str, x: Value, channels: Channels) -> Value:
        """Half the size without losing positions: two 1x1 convolutions, one a pixel further."""
        inp, out = channels
        x = self._relu(x)
        left = self._conv(f"{name}.conv0", x, (inp, out // 2), 1, 2)
        right = self._emit(Apply(shifted), x)
        right = self._conv(f"{name}.conv1", right, (inp, out // 2), 1, 2)
        joined = self._emit(Concat(), left, right)
        return self._norm(f"{name}.norm", joined, out)

    def _squeeze_excitation(self, name: str, x: Value, channels: int, stride: int) -> Value:
        gate = self._emit(Apply(squeeze, math.inf), x)
        gate = self._emit(Linear(f"{name}.reduce", channels, channels // 2), gate)
        gate = self._relu(gate)
        gate = self._emit(Linear(f"{name}.expand", channels // 2, channels), gate)
        gate = self._emit(Apply(F.hardswish), gate)
        x = self._emit(Gate(), x, gate)
        return self._emit(Subsample(stride), x) if stride > 1 else x

    def _transformer(self, name: str, x: Value, width: int) -> Value:
        """A pre-norm transformer layer, as wide inside as outside."""
        inner = width // HEADS * HEADS
        x = self._emit(Apply(to_tokens), x)
        y = self._emit(LayerNorm(f"{name}.ln1", width), x)
        y = self._emit(Linear(f"{name}.to_qkv", width, 3 * inner, bias=False), y)
        y = self._emit(Attention(inner), y)
        y = self._emit(Linear(f"{name}.to_out", inner, width), y)
        x = self._emit(Sum(), y, x)
        y = self._emit(LayerNorm(f"{name}.ln2", width), x)
        y = self._emit(Linear(f"{name}.mlp.0", width, width), y)
        y = self._emit(Apply(F.gelu), y)
        y = self._emit(Linear(f"{name}.mlp.1", width, width), y)
        x = self._emit(Sum(), y, x)
        return self._emit(Apply(to_image), x)

    # -- head

    def _head(self, x: Value, channels: int) -> Value:
        a = self.architecture
        if a.glob_avg:
            x = self._emit(GlobalPool(), x)
        else:
            channels *= self.size**2
            x = self._emit(Apply(torch.nn.Flatten(), math.inf), x)
        for i in range(a.fc_layers - 1):
            x = self._relu(self._emit(Linear(f"classifier.{i}", channels, a.fc_dim), x))
            if self.dropout:
                x = self._emit(Apply(nn.Dropout(self.dropout)), x)
            channels = a.fc_dim
        return self._emit(Linear(f"classifier.{a.fc_layers - 1}", channels, self.num_classes), x)
