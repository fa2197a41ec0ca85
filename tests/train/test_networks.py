"""Target networks: recorded sizes, graphs, forward passes, and the depthwise gradient."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published_generator import load_official_graph, recorded_graph

from ghn_init import GHNInitError
from ghn_init.graph.builder import trace_graph
from ghn_init.graph.graph import Node
from ghn_init.graph.inputs import Inputs
from ghn_init.train.networks.depthwise import _DepthwiseConv, depthwise_conv
from ghn_init.train.networks.generate import sample
from ghn_init.train.networks.genotypes import Architecture, Cell, from_json, to_json
from ghn_init.train.networks.nets import load_nets
from ghn_init.train.networks.network import Network

OFFICIAL = Path(__file__).parents[3] / "shared" / "deepnets"
official = pytest.mark.skipif(not OFFICIAL.exists(), reason="the official files are not here")

ODD = sorted({*range(0, 100, 9), 4, 18, 83})
"""Some of the official architectures: with attention, gates, cut edges, without norms."""

PLAIN = Architecture(
    normal=Cell((("conv_3x3", 0), ("skip_connect", 1)), (2,)),
    reduce=Cell((("max_pool_3x3", 0), ("none", 1)), (2,)),
    n_cells=4,
)


def recorded() -> list[Architecture]:
    return load_nets(OFFICIAL, "train")


def traced(network: Network) -> object:
    images = torch.zeros(2, 3, network.image_size, network.image_size)
    graph = trace_graph(network.module(), Inputs((images,), {}))
    return graph.nodes, graph.edges, dict(graph.left), dict(graph.shapes)


def built(network: Network) -> object:
    graph = network.graph
    return graph.nodes, graph.edges, dict(graph.left), dict(graph.shapes)


@official
def test_official_networks_have_the_recorded_parameters() -> None:
    for architecture in recorded():
        small, large = Network(architecture, 10, 32), Network(architecture, 10, 224)
        sizes = {"cifar10": small.num_params, "imagenet": large.num_params}
        assert sizes == dict(architecture.num_params)


@official
def test_official_graphs_are_those_the_published_generator_makes_of_ours() -> None:
    """In all 100 files: the number of nodes, every edge, and every node in its row.

    44 of the graphs lack `msa` or `cse` nodes, and nothing else, that ours have. The rows go from
    cell to cell, the adjacency does not.
    """
    lacking = 0
    for index, architecture in enumerate(recorded()):
        network = Network(architecture)
        graph, file = recorded_graph(network), load_official_graph(OFFICIAL, "train", index)
        assert len(graph) == architecture.num_nodes
        assert graph.edges == file.edges
        rows = [node.op for node in by_cell(graph.nodes, architecture.n_cells)]
        assert rows == [node.op for node in file.nodes]
        lost = Counter(node.op for node in network.graph.nodes)
        lost.subtract(rows)
        assert {op for op, count in lost.items() if count} <= {"msa", "cse"}
        assert min(lost.values()) == 0
        lacking += any(lost.values())
    assert lacking == 44


def by_cell(nodes: Sequence[Node], n_cells: int) -> list[Node]:
    """Sorted by cell; those without a parameter belong to the cell of the one before."""
    cell, cells = 0, []
    for node in nodes:
        match (node.param or "").split("."):
            case "cells", number, *_:
                cell = int(number)
            case "classifier", *_:
                cell = n_cells - 1
        cells.append(cell)
    return [nodes[i] for i in sorted(range(len(nodes)), key=cells.__getitem__)]


@pytest.mark.parametrize(("beside", "staying"), [("none", 4), ("conv_1x1", 2), ("sep_conv_3x3", 1)])
def test_the_published_generator_loses_gates_beside_other_branches(
    beside: str, staying: int
) -> None:
    """The numbers are those of the published code, run on these networks."""
    cell = Cell((("cse", 1), (beside, 0), ("conv_3x3", 2), ("none", 0)), (3,))
    network = Network(replace(PLAIN, normal=cell, reduce=cell))
    gates = [node for node in recorded_graph(network).nodes if node.op == "cse"]
    assert len(gates) == staying
    assert len(recorded_graph(network)) == len(network.graph) - 4 + staying


def test_graphs_without_attention_and_gates_are_recorded_as_they_are() -> None:
    network = Network(PLAIN)
    graph = recorded_graph(network)
    place = {node.param: i for i, node in enumerate(graph.nodes) if node.param}
    assert Counter(graph.nodes) == Counter(network.graph.nodes)
    assert len(graph.edges) == len(network.graph.edges)
    for i, j in network.graph.edges:
        names = network.graph.nodes[i].param, network.graph.nodes[j].param
        if None not in names:
            assert (place[names[0]], place[names[1]]) in graph.edges


@official
@pytest.mark.parametrize("index", ODD)
def test_the_graph_is_the_traced_one(index: int) -> None:
    network = Network(recorded()[index])
    assert built(network) == traced(network)


@official
@pytest.mark.slow
def test_every_official_graph_is_the_traced_one() -> None:
    for architecture in recorded():
        for image_size in (32, 224):
            network = Network(architecture, 10, image_size)
            assert built(network) == traced(network)


@pytest.mark.parametrize("split", ["wide", "dense", "bnfree"])
def test_generated_graphs_are_the_traced_ones(split: str) -> None:
    network = Network(sample(split, 0))
    assert built(network) == traced(network)


def test_module_and_network_compute_the_same() -> None:
    network = Network(sample("test", 1).resized(8, 16))
    params = network.random_params(torch.Generator().manual_seed(0))
    module = network.module("cpu")
    module.load_state_dict(params, strict=False)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(module(images), network(images, params))


@pytest.mark.parametrize("size", [8, 15, 28, 33, 100])
def test_networks_take_images_of_any_size(size: int) -> None:
    for index in range(12):
        network = Network(sample("train", index).resized(8, 16), 10, size)
        params = network.random_params(torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert network(torch.randn(2, 3, size, size), params).isfinite().all()


def test_nothing_is_allocated() -> None:
    network = Network(sample("wide", 0))
    assert all(p.device.type == "meta" for p in network.module().parameters())


def test_random_parameters_are_those_of_pytorch() -> None:
    network = Network(PLAIN)
    params = network.random_params(torch.Generator().manual_seed(0))
    assert {name: tuple(p.shape) for name, p in params.items()} == {
        name: shape for name, shape in network.shapes.items() if name not in network.graph.left
    }
    weight = params["cells.0.edges.0.conv.weight"]
    assert weight.abs().max() <= math.prod(weight.shape[1:]) ** -0.5
    assert weight.std().item() == pytest.approx((3 * math.prod(weight.shape[1:])) ** -0.5, rel=0.1)
    assert params["stem.norm.weight"].eq(1).all()


def test_a_network_without_a_path_is_refused() -> None:
    cut = replace(PLAIN, normal=Cell((("none", 0), ("none", 1)), (2,)), reduce=PLAIN.normal)
    with pytest.raises(GHNInitError, match="no path"):
        Network(cut)


def test_states_that_are_cut_off_count_as_zeros() -> None:
    edges = (("none", 0), ("none", 1), ("conv_1x1", 0), ("conv_3x3", 1))
    network = Network(replace(PLAIN, normal=Cell(edges, (2, 3))))
    params = network.random_params(torch.Generator().manual_seed(0))
    assert network(torch.randn(2, 3, 32, 32), params).isfinite().all()
    assert built(network) == traced(network)


def test_architectures_survive_json() -> None:
    for index in range(5):
        architecture = sample("dense", index)
        again = from_json(json.loads(json.dumps(to_json(architecture))))
        assert again == architecture
        assert again.num_params == architecture.num_params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": [["conv_9x9", 0], ["msa", 1]]}, "unknown primitive"),
        ({"normal": [["msa", 2], ["msa", 1]]}, "not before it"),
        ({"normal_concat": [5]}, "concatenate"),
        ({"normal": [["msa", 0]]}, "two edges"),
        ({"normal": None}, "TypeError"),
    ],
)
def test_damaged_genotypes_are_refused(change: dict[str, object], message: str) -> None:
    entry = to_json(PLAIN)
    entry["genotype"] |= change
    with pytest.raises(GHNInitError, match=message):
        from_json(entry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 11])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 2), (5, 1, 1), (5, 2, 2), (3, 2, 1)]
)
def test_depthwise_gradients(
    dtype: torch.dtype, size: int, kernel: int, stride: int, dilation: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, size, size, generator=generator).to(dtype)
    weight = torch.randn(8, 1, kernel, kernel, generator=generator).to(dtype)

    def gradients(own: bool) -> list[torch.Tensor]:
        precise = dtype if own else torch.float64
        inputs = [t.detach().to(precise, copy=True).requires_grad_() for t in (x, weight)]
        padding = (kernel - 1) * dilation // 2
        out = (
            _DepthwiseConv.apply(*inputs, stride, dilation)
            if own
            else F.conv2d(*inputs, None, stride, padding, dilation, groups=8)
        )
        upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        out.backward(upstream.to(precise))
        return [out.detach().double(), *(t.grad.double() for t in inputs if t.grad is not None)]

    torch.testing.assert_close(
        depthwise_conv(x, weight, stride, dilation).double(), gradients(True)[0]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, exact in zip(gradients(True), gradients(False), strict=True):
        assert ours.shape == exact.shape
        assert (ours - exact).norm() <= tolerance * exact.norm()
