"""The configuration of a graph hypernetwork."""

from __future__ import annotations

from dataclasses import dataclass

ARCHITECTURES = ("ghn3", "ghn2", "mlp")


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
    """

    arch: str
    hidden_size: int
    layers: int
    heads: int
    max_shape: tuple[int, int, int, int]
    num_classes: int
    final_layernorm: bool = True
    virtual_edges: bool = True

    @property
    def channels(self) -> int:
        """`C`: output (and input) channels of a decoded weight."""
        return self.max_shape[0]

    @property
    def kernel(self) -> int:
        """`S`: height (and width) of a decoded kernel."""
        return self.max_shape[2]
