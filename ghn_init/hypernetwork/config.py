"""What is known of a graph hypernetwork besides its weights: sizes, defaults and origin."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ghn_init.errors import GHNInitError
from ghn_init.graph.graph import NORMS

ARCHITECTURES = ("ghn3", "ghn2", "mlp")

_LARGEST = {
    "hidden_size": 1 << 14,
    "layers": 256,
    "heads": 1 << 10,
    "channels": 1 << 14,
    "kernel": 1 << 10,
    "num_classes": 1 << 20,
    "rank": 1 << 12,
    "rows": 1 << 24,
}
"""Far above anything published: a damaged file must not ask for tables of any size."""


@dataclass(frozen=True)
class GHNConfig:
    """Sizes of a graph hypernetwork (GHN-3 paper, Table 1 and Appendix A.1).

    Arguments:
        arch: `"ghn3"` (Graphormer layers), `"ghn2"` (a gated graph neural network) or `"mlp"` (no
            edges and no attention: the last ablation in Table 5 of the GHN-3 paper).
        hidden_size: width `d` of the node features.
        layers: number of Graphormer layers; 1 for GHN-2 (one forward and one backward sweep).
        heads: attention heads; 1 for GHN-2.
        max_shape: `(C, C, S, S)`, the shape of the tensor decoded for a weight before it is cut
            or tiled: `C` output and input channels, `S` kernel height and width.
        num_classes: outputs of the classification layer it was trained to predict.
        final_layernorm: whether a layer norm follows the last graph layer.
        virtual_edges: whether GHN-2 sends messages along shortest paths too (GHN-2 paper, Eq. 4).
        rank: r of the low-rank decoder of LoGAH, for which `C` is only the most channels that are
            decoded; 0 for the decoder of GHN-3 and GHN-2.
        rows: K of the low-rank decoder: the most channels times height (or width) of a kernel, at
            least `2 * C`; 0 without one.

    Raises:
        GHNInitError: when it is made, if no hypernetwork can have these sizes.
    """

    arch: str
    hidden_size: int
    layers: int
    heads: int
    max_shape: tuple[int, int, int, int]
    num_classes: int
    final_layernorm: bool = True
    virtual_edges: bool = True
    rank: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise GHNInitError(f"arch is {self.arch!r}: give one of {', '.join(ARCHITECTURES)}.")
        if len(self.max_shape) != 4 or self.max_shape[::2] != self.max_shape[1::2]:
            raise GHNInitError(f"max_shape is {self.max_shape!r:.80}: give (C, C, S, S).")
        for name, largest in _LARGEST.items():
            size = getattr(self, name)
            least = 0 if name in ("rank", "rows") else 1
            if type(size) is not int or not least <= size <= largest:
                raise GHNInitError(
                    f"{name} is {size!r:.80}: give an int from {least} to {largest:,}."
                )
        if self.rows < 2 * self.channels if self.rank else self.rows:
            raise GHNInitError(
                f"rows is {self.rows}, with a rank of {self.rank} and {self.channels} channels: "
                "give twice the channels or more, and 0 without a rank."
            )
        if self.hidden_size % 4 or self.hidden_size % self.heads:
            raise GHNInitError(
                f"a hidden size of {self.hidden_size} and {self.heads} heads do not go together: "
                "the hidden size must be a multiple of 4 and of the heads."
            )

    @property
    def channels(self) -> int:
        """`C`: output (and input) channels of a decoded weight."""
        return self.max_shape[0]

    @property
    def kernel(self) -> int:
        """`S`: height (and width) of a decoded kernel."""
        return self.max_shape[2]


@dataclass(frozen=True)
class Defaults:
    """How a checkpoint is best used where the user does not say it. Stored in its file.

    Arguments:
        orth_start: L of the second paper, from which layer on weights are made orthogonal: a layer
            counted from 1 (int), or a share of the depth from 0 to 1 (float). 0.685 is 37 of
            ResNet-50's 54 layers, the best in its Table 2.
        norms: the kinds of normalization layers whose predictions are taken: `"bn"` (batch norm),
            `"ln"` (layer and group norm), both as published.

    Raises:
        GHNInitError: when it is made, if a value is none of these.
    """

    orth_start: int | float = 0.685
    norms: AbstractSet[str] = NORMS

    def __post_init__(self) -> None:
        start, norms = self.orth_start, self.norms
        whole = type(start) is int and start >= 0
        share = type(start) is float and math.isfinite(start) and 0 <= start <= 1
        if not whole and not share:
            raise GHNInitError(
                f"the default orth_start is {start!r:.80}: give a layer (an int, at least 0) or a "
                "share of the depth (a float from 0 to 1)."
            )
        if not isinstance(norms, AbstractSet) or not norms <= NORMS:
            raise GHNInitError(
                f"the default norms are {norms!r:.80}: give a set of {' and '.join(sorted(NORMS))}."
            )
        object.__setattr__(self, "norms", frozenset(norms))


@dataclass(frozen=True)
class Origin:
    """Which file a hypernetwork comes from; nothing for one that was not loaded.

    Arguments:
        sha256: checksum of the original file, before any conversion.
        source: `"hub:<repository>/<file>"`, `"embedded"`, or the absolute path of the file.
        revision: commit of the Hub repository; None for a local file.
    """

    sha256: str = ""
    source: str = ""
    revision: str | None = None
