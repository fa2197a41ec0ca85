"""The graph hypernetworks GHN-2 and GHN-3: a graph in, parameter tensors out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghn_init.graph.graph import PRIMITIVES, Graph
from ghn_init.hypernetwork.config import Defaults, GHNConfig, Origin
from ghn_init.hypernetwork.decoder import ConvDecoder, VectorDecoder
from ghn_init.hypernetwork.encoding import (
    MAX_DEGREE,
    MAX_INPUT_DISTANCE,
    EncodedGraphs,
    channel_table,
    encode,
    kernel_table,
)
from ghn_init.hypernetwork.ghn2 import GatedGNN
from ghn_init.hypernetwork.graphormer import Graphormer, NodeMLP
from ghn_init.hypernetwork.low_rank import LowRankDecoder

Decoder = ConvDecoder | LowRankDecoder


class ShapeEncoder(nn.Module):
    """Embeddings of a parameter's four sizes, d/4 wide each, side by side."""

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        width = config.hidden_size // 4
        self.embed_channel = nn.Embedding(len(channel_table(config.num_classes)) + 1, width)
        self.embed_spatial = nn.Embedding(len(kernel_table(config.kernel)) + 1, width)

    def forward(self, rows: Tensor) -> Tensor:
        """`(B, N, 4)` table rows -> `(B, N, d)`."""
        channels = self.embed_channel(rows[..., :2])
        kernel = self.embed_spatial(rows[..., 2:])
        return torch.cat([channels, kernel], dim=-2).flatten(-2)


class GHN(nn.Module):
    """A graph hypernetwork: GHN-3 (Knyazev et al., 2023) or GHN-2 (Knyazev et al., 2021).

    With a rank it has the decoder of LoGAH (Zhou et al., 2024) for all parameters.

    Its state dict has the names of the published checkpoints, and their shapes but for the
    decoder's first map: `decoder.fc.0.*.movedim(2, 0).flatten(0, 2)` is the published one.

    Arguments:
        config: architecture and sizes.
        name: what it was loaded as, for reports.
        origin: the file it was loaded from; empty for a new one.
        defaults: how it is best used.
    """

    def __init__(
        self,
        config: GHNConfig,
        name: str = "unnamed",
        origin: Origin = Origin(),  # noqa: B008 (frozen)
        defaults: Defaults = Defaults(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        d = config.hidden_size
        self.config, self.name, self.origin, self.defaults = config, name, origin, defaults
        self.embed = nn.Embedding(len(PRIMITIVES), d)
        self.shape_enc = ShapeEncoder(config)
        if config.arch == "ghn3":
            self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, d)
            self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, d)
            self.input_dist_embed = nn.Embedding(MAX_INPUT_DISTANCE + 1, d)
            self.gnn: nn.Module = Graphormer(d, config.layers, config.heads)
        elif config.arch == "ghn2":
            self.gnn = GatedGNN(d, config.virtual_edges)
        else:
            self.gnn = NodeMLP(d, config.layers)
        if config.final_layernorm:
            self.ln = nn.LayerNorm(d)
        if config.rank:
            self.decoder: Decoder = LowRankDecoder(config)
            return
        self.decoder = ConvDecoder(config)
        self.decoder_1d = VectorDecoder(d, config.channels)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(config.channels, config.num_classes))

    @property
    def device(self) -> torch.device:
        """Where the hypernetwork computes."""
        return self.embed.weight.device

    def encode(self, graphs: list[Graph]) -> EncodedGraphs:
        """Look-up indices of a batch of graphs, on the hypernetwork's device."""
        config = self.config
        encoded = encode(graphs, config.num_classes, config.kernel, config.arch == "ghn2")
        return encoded.to(self.device)

    def forward(self, graphs: EncodedGraphs) -> Tensor:
        """Node features behind the graph network, `(B, N, d)` for B graphs of at most N nodes."""
        x: Tensor = self.embed(graphs.primitives) + self.shape_enc(graphs.shapes)
        if self.config.arch == "ghn3":  # Eq. 7, and the distance from the input (Appendix A.1)
            x = x + self.centrality_embed_in(graphs.in_degrees)
            x = x + self.centrality_embed_out(graphs.out_degrees)
            x = x + self.input_dist_embed(graphs.input_distances)
        x = self.gnn(x, graphs)
        if self.config.final_layernorm:
            x = self.ln(x)
        return x


def without_weights(
    config: GHNConfig,
    name: str = "unnamed",
    origin: Origin = Origin(),  # noqa: B008 (frozen)
    defaults: Defaults = Defaults(),  # noqa: B008 (frozen)
) -> GHN:
    """A hypernetwork on the meta device, for `load_state_dict(..., assign=True)`.

    Arguments: as of `GHN`.
    """
    with torch.device("meta"), _Uninitialized():
        return GHN(config, name, origin, defaults)


class _Uninitialized(TorchFunctionMode):
    """Draws no numbers. On the meta device, the first normal ones import torch's compiler (1 s)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)
