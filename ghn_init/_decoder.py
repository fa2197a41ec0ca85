"""Node features -> parameter tensors (GHN-2 paper, Section 3.2; GHN-3 paper, Appendix A.1).

A decoder can produce a tensor of `max_shape` for every node. Only the channels and kernel
positions that a layer uses are computed: the rows of the last linear maps are selected before
they are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._config import GHNConfig

Rows = tuple[Tensor, Tensor]
"""Some rows of a linear map: weight and bias."""


class Selected:
    """Rows that were selected before in one prediction.

    They are remembered in training only: there every selection costs a gradient of the size of
    the whole map, while in inference it costs memory to keep it.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int, int], Rows] = {}

    def get(self, key: tuple[str, int, int], select: Callable[[], Rows]) -> Rows:
        """The rows of that key, selected if they are new."""
        if not torch.is_grad_enabled():
            return select()
        if key not in self._rows:
            self._rows[key] = select()
        return self._rows[key]


class ConvDecoder(nn.Module):
    """Decoder of weights: convolutions, linear layers, positional embeddings, classifiers.

    Arguments:
        config: sizes; `max_shape` is `(C, C, S, S)`.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        d, c, s = config.hidden_size, config.channels, config.kernel
        self.channels, self.kernel, self.centred = c, s, config.arch != "ghn2"
        self.hidden_size = d
        self.fc = nn.Sequential(nn.Linear(d, 4 * d * s * s), nn.ReLU())
        self.conv = nn.Sequential(nn.Linear(4 * d, 8 * d), nn.ReLU(), nn.Linear(8 * d, c * c))
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(c, config.num_classes))

    def forward(
        self, x: Tensor, out: int, in_: int, height: int, width: int, selected: Selected
    ) -> Tensor:
        """`(N, d)` node features -> `(N, out, in, height, width)`, out and in at most C.

        A kernel larger than S is bilinearly interpolated.

        Arguments:
            x: features of nodes.
            out, in_, height, width: of the weights.
            selected: see there.
        """
        h, w = min(height, self.kernel), min(width, self.kernel)
        out, in_ = min(out, self.channels), min(in_, self.channels)
        first = selected.get(("positions", h, w), lambda: self._positions(h, w))
        weight = F.relu(F.linear(x, *first)).view(len(x), h, w, -1)  # (N, h, w, 4d)
        weight = self.conv[1](self.conv[0](weight))
        last = selected.get(("channels", out, in_), lambda: self._channels(out, in_))
        weight = F.linear(weight, *last)  # (N, h, w, out * in)
        weight = weight.permute(0, 3, 1, 2)
        if (h, w) != (height, width):
            weight = F.interpolate(weight, (height, width), mode="bilinear")
        return weight.unflatten(1, (out, in_))

    def classifier(self, x: Tensor, in_: int, selected: Selected) -> Tensor:
        """`(N, d)` node features -> `(N, num_classes, in)`, in at most C."""
        weight = self(x, self.channels, in_, 1, 1, selected)[..., 0, 0]  # (N, C, in)
        return self.class_layer_predictor(weight.transpose(1, 2)).transpose(1, 2)

    def _positions(self, h: int, w: int) -> Rows:
        """First linear map, for the kernel positions in use: `(h * w * 4d, d)`."""
        s = self.kernel
        top, left = (s // 2 - h // 2, s // 2 - w // 2) if self.centred else (0, 0)
        first_weight, first_bias = self.fc[0].parameters()
        rows = first_weight.view(-1, s, s, self.hidden_size)[:, top : top + h, left : left + w]
        bias = first_bias.view(-1, s, s)[:, top : top + h, left : left + w]
        rows, bias = rows.permute(1, 2, 0, 3), bias.permute(1, 2, 0)
        return rows.flatten(0, 2), bias.flatten()

    def _channels(self, out: int, in_: int) -> Rows:
        """Last linear map, for the channels in use: `(out * in, 8d)`."""
        weight, bias = self.conv[2].parameters()
        rows = weight.view(self.channels, self.channels, -1)[:out, :in_].flatten(0, 1)
        return rows, bias.view(self.channels, self.channels)[:out, :in_].flatten()


class VectorDecoder(nn.Module):
    """Decoder of norm weights (row 0) and of biases (row 1): an MLP d -> 2d -> 2C."""

    def __init__(self, hidden_size: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.ReLU(),
            nn.Linear(2 * hidden_size, 2 * channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, d)` node features -> `(N, 2, C)`."""
        return self.fc(x).unflatten(-1, (2, -1))


def fit(decoded: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring decoded tensors to a parameter's channels, cutting what is too large.

    What is too small is repeated along the output, then the input channels.

    Arguments:
        decoded: `(N, out, ...)` or `(N, out, in, ...)`.
        shape: sizes of the parameter's channels, `(out,)` or `(out, in)`.
    """
    for axis, size in enumerate(shape[:2], start=1):
        if decoded.shape[axis] < size:
            times = [1] * decoded.dim()
            times[axis] = -(-size // decoded.shape[axis])
            decoded = decoded.repeat(times)
        decoded = decoded.narrow(axis, 0, size)
    return decoded


def normalise_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scale a decoded weight to its fan-in (GHN-2 paper, Appendix A): times sqrt(beta / fan-in).

    beta is 2 (He et al.), except for depth-wise and row kernels, where it is 1.

    Arguments:
        weight: as it was decoded.
        shape: of the parameter that it becomes.
    """
    narrow = len(shape) > 2 and shape[1] == 1
    row = len(shape) > 3 and shape[2] < shape[3]
    return weight * ((1 if narrow or row else 2) / math.prod(shape[1:])) ** 0.5


def normalise_norm_weight(weight: Tensor) -> Tensor:
    """Keep a norm's weight in (0, 2), around 1."""
    return 2 * torch.sigmoid(0.5 * weight)


def normalise_bias(bias: Tensor) -> Tensor:
    """Keep a bias in (-1, 1), around 0."""
    return torch.tanh(0.2 * bias)
