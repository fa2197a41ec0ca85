"""The tensors of published checkpoints, written down by hand: an oracle for our own modules."""

from __future__ import annotations

from ghn_init.hypernetwork.config import GHNConfig


def published_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a hypernetwork: the names and sizes never change."""
    d, c, s = config.hidden_size, config.channels, config.kernel
    classes = config.num_classes
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (15, d),
        "shape_enc.embed_channel.weight": (_channel_rows(classes), d // 4),
        "shape_enc.embed_spatial.weight": (_kernel_rows(s), d // 4),
    }
    if config.rank:
        shapes |= _linear("decoder.mlp.fc.0", 4 * d, d) | _linear("decoder.mlp.fc.2", 8 * d, 4 * d)
        shapes |= _linear("decoder.mlp.fc.4", 2 * config.rank**2, 8 * d)
        shapes |= _linear("decoder.l2", config.rows, config.rank)
    else:
        shapes |= {
            "decoder.fc.0.weight": (s, s, 4 * d, d),
            "decoder.fc.0.bias": (s, s, 4 * d),
            **_linear("decoder.conv.0", 8 * d, 4 * d),
            **_linear("decoder.conv.2", c * c, 8 * d),
            **_linear("decoder.class_layer_predictor.1", classes, c),
            **_linear("decoder_1d.fc.0", 2 * d, d),
            **_linear("decoder_1d.fc.2", 2 * c, 2 * d),
            **_linear("bias_class.1", classes, c),
        }
    if config.final_layernorm:
        shapes |= _norm("ln", d)
    kinds = {"ghn3": _graphormer_shapes, "ghn2": _gated_shapes, "mlp": _mlp_shapes}
    return shapes | kinds[config.arch](config)


def _graphormer_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    d = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "centrality_embed_in.weight": (101, d),
        "centrality_embed_out.weight": (101, d),
        "input_dist_embed.weight": (1001, d),
        "gnn.0.attn.edge_embed.embed.weight": (257, d),
        **_linear("gnn.0.attn.proj_e.0", d, 2 * d),
        **_linear("gnn.0.attn.proj_e.2", config.heads, d),
    }
    for layer in range(config.layers):
        shapes |= _norm(f"gnn.{layer}.ln1", d)
        shapes |= {f"gnn.{layer}.attn.to_qkv.weight": (3 * d, d)}
        shapes |= _linear(f"gnn.{layer}.attn.to_out.0", d, d)
    return shapes | _mlp_shapes(config)


def _mlp_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    d = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.layers):
        shapes |= _norm(f"gnn.{layer}.ln2", d)
        shapes |= _linear(f"gnn.{layer}.ff.net.0", 4 * d, d)
        shapes |= _linear(f"gnn.{layer}.ff.net.3", d, 4 * d)
    return shapes


def _gated_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    d = config.hidden_size
    middle = d // 2 if config.virtual_edges else d
    shapes = _linear("gnn.mlp.fc.0", middle, d) | _linear("gnn.mlp.fc.2", d, middle)
    if config.virtual_edges:
        shapes |= _linear("gnn.mlp_ve.fc.0", middle, d) | _linear("gnn.mlp_ve.fc.2", d, middle)
    for side in ("ih", "hh"):
        shapes |= {
            f"gnn.gru.weight_{side}": (3 * d, d),
            f"gnn.gru.bias_{side}": (3 * d,),
        }
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _channel_rows(num_classes: int) -> int:
    """Rows of the table of channel counts, the dummy row included."""
    exact = {1, 3, num_classes}
    return len(exact.union(range(8, 64, 8), range(64, 4096, 16), range(4096, 8193, 32))) + 1


def _kernel_rows(kernel: int) -> int:
    """Rows of the table of kernel sizes, the dummy row included."""
    return len({14, 16}.union(range(1, max(11, kernel - 1) + 1, 2))) + 1
