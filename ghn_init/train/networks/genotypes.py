"""Architectures of the DeepNets-1M space, as data: cells, and how a network is stacked of them.

The space (GHN-2 paper, Section 4) is that of DARTS with more primitives, stems, heads, widths and
depths. An architecture is written as one JSON object with the names of the official files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ghn_init.errors import GHNInitError

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""What an edge of a cell may compute."""

PARAMETER_FREE = PRIMITIVES[:4]
"""Primitives of reduction cells without trainable layers."""

DEFAULT_CHANNELS = 32
"""Initial channels of an architecture that does not say how many it has."""


@dataclass(frozen=True)
class Cell:
    """A directed acyclic graph of primitives between the outputs of the two cells before it.

    Arguments:
        edges: two `(primitive, from)` for each state. States 0 and 1 are the inputs, state
            `2 + i` is the sum of edges `2 i` and `2 i + 1`.
        concat: the states that are concatenated to the cell's output.
    """

    edges: tuple[tuple[str, int], ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises `GHNInitError` for what is no cell."""
        states = 2 + len(self.edges) // 2
        if not self.edges or len(self.edges) % 2:
            raise GHNInitError(f"a cell has two edges a state, not {len(self.edges)} in all.")
        for i, (primitive, source) in enumerate(self.edges):
            if primitive not in PRIMITIVES:
                known = ", ".join(PRIMITIVES)
                raise GHNInitError(f"unknown primitive {primitive!r}; known are {known}.")
            if not 0 <= source < 2 + i // 2:
                raise GHNInitError(f"edge {i} of a cell starts at state {source}, not before it.")
        if not self.concat or not all(2 <= state < states for state in self.concat):
            raise GHNInitError(f"a cell cannot concatenate its states {list(self.concat)}.")

    def count(self, *primitives: str) -> int:
        """How many edges compute one of these primitives."""
        return sum(primitive in primitives for primitive, _ in self.edges)


@dataclass(frozen=True)
class Architecture:
    """A network of stacked cells (GHN-2 paper, Appendix A).

    Arguments:
        normal: the cell that keeps size and channels.
        reduce: the cell at one and two thirds of the depth, which halves the size.
        n_cells: number of cells.
        channels: of the first cells.
        channel_mult: factor on the channels at every reduction.
        stem_type: 0: one convolution; 1: three, as DARTS has for ImageNet. A network with
            attention has a strided convolution and a positional embedding instead.
        stem_pool: max pooling behind the stem (type 0).
        stem_kernel: kernel size of the first convolution.
        stem_stride: stride of a type 0 stem for large images.
        norm: batch normalization, or none.
        preproc: 1x1 convolutions that bring a cell's inputs to its number of channels.
        glob_avg: global average pooling before the classifier, or all positions flattened.
        fc_layers: linear layers of the classifier.
        fc_dim: width between them.
        num_nodes: nodes of its graph, where recorded.
        num_params: parameters by data set (`cifar10`, `imagenet`), where recorded.
    """

    normal: Cell
    reduce: Cell
    n_cells: int
    channels: int = DEFAULT_CHANNELS
    channel_mult: int = 2
    stem_type: int = 0
    stem_pool: bool = False
    stem_kernel: int = 3
    stem_stride: int = 4
    norm: bool = True
    preproc: bool = True
    glob_avg: bool = True
    fc_layers: int = 1
    fc_dim: int = 256
    num_nodes: int | None = field(default=None, compare=False)
    num_params: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Raises `GHNInitError` where the parts do not fit together."""
        if not self.preproc and (len(self.normal.concat) > 1 or self.channel_mult > 1):
            raise GHNInitError(
                "cells that concatenate states or multiply channels need `preproc`, the 1x1 "
                "convolutions at their inputs."
            )

    @property
    def has_attention(self) -> bool:
        """Whether it is a vision transformer: patches, a positional embedding, one size."""
        return self.count("msa") > 0

    def count(self, *primitives: str) -> int:
        """How many edges of its two cells compute one of these primitives."""
        return self.normal.count(*primitives) + self.reduce.count(*primitives)

    def resized(self, channels: int | None = None, fc_dim: int | None = None) -> Architecture:
        """The same with other widths; its recorded number of parameters no longer holds."""
        return replace(
            self,
            channels=channels or self.channels,
            fc_dim=fc_dim or self.fc_dim,
            num_params={},
        )


def from_json(args: Mapping[str, Any]) -> Architecture:
    """An architecture from an entry of the official meta files, or of `to_json`.

    Raises:
        GHNInitError: something is missing in it, or it is no architecture.
    """
    try:
        genotype = args["genotype"]
        return Architecture(
            normal=_cell(genotype, "normal"),
            reduce=_cell(genotype, "reduce"),
            n_cells=int(args["n_cells"]),
            channels=int(args.get("C", DEFAULT_CHANNELS)),
            channel_mult=int(args["C_mult"]),
            stem_type=int(args["stem_type"]),
            stem_pool=bool(args["stem_pool"]),
            stem_kernel=int(args["ks"]),
            norm=args["norm"] not in (None, "", "none"),
            preproc=bool(args["preproc"]),
            glob_avg=bool(args["glob_avg"]),
            fc_layers=int(args["fc_layers"]),
            fc_dim=int(args["fc_dim"]),
            num_nodes=args.get("num_nodes"),
            num_params=dict(args.get("num_params") or {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GHNInitError(
            f"not an architecture of DeepNets-1M ({type(error).__name__}: {error})."
        ) from error


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The entry of an architecture in a meta file: the official names, and `C`."""
    a = architecture
    return {
        "genotype": {
            "normal": [list(edge) for edge in a.normal.edges],
            "normal_concat": list(a.normal.concat),
            "reduce": [list(edge) for edge in a.reduce.edges],
            "reduce_concat": list(a.reduce.concat),
        },
        "n_cells": a.n_cells,
        "C": a.channels,
        "C_mult": a.channel_mult,
        "stem_type": a.stem_type,
        "stem_pool": a.stem_pool,
        "ks": a.stem_kernel,
        "norm": "bnorm" if a.norm else None,
        "preproc": a.preproc,
        "glob_avg": a.glob_avg,
        "fc_layers": a.fc_layers,
        "fc_dim": a.fc_dim,
        "num_nodes": a.num_nodes,
        "num_params": dict(a.num_params),
    }


def _cell(genotype: Mapping[str, Any], kind: str) -> Cell:
    edges = tuple((str(primitive), int(source)) for primitive, source in genotype[kind])
    return Cell(edges, tuple(int(state) for state in genotype[f"{kind}_concat"]))
