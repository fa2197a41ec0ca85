from __future__ import annotations

import networkx as nx
import pytest
import torch
from models import ConvNet, torchvision_model

import ghn_init
from ghn_init import Graph, Node


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small"])
def test_distances(name: str) -> None:
    graph = ghn_init.trace(torchvision_model(name))
    expected = torch.zeros(len(graph), len(graph), dtype=torch.int16)
    for i, lengths in nx.all_pairs_shortest_path_length(nx.DiGraph(graph.edges)):
        for j, length in lengths.items():
            expected[i, j] = length if length <= 50 else 0
    assert torch.equal(graph.distances, expected)


def test_distances_stop_at_fifty() -> None:
    chain = Graph(tuple(Node("sum") for _ in range(60)), [(i, i + 1) for i in range(59)])
    assert chain.distances[0, 50] == 50
    assert chain.distances[0, 51] == 0
    assert chain.distances[5, 4] == 0


def test_recorded_distances(shared) -> None:
    import json

    paths = sorted((shared / "golden" / "torchvision").glob("*.json"))
    assert paths
    for path in paths:
        recorded = json.loads(path.read_text())
        nodes = tuple(Node(op) for _, op, _ in recorded["nodes"])
        distances = Graph(nodes, [tuple(e) for e in recorded["edges"]]).distances
        found = {
            "count": int((distances > 0).sum()),
            "sum": int(distances.sum()),
            "max": int(distances.max()),
        }
        assert found == recorded["all_pairs"], path.name


def test_summary() -> None:
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))
    assert graph.summary() == (
        "nodes 15, edges 16, average degree 2.13, longest shortest path 9\n"
        "max_pool 1  sep_conv 1  conv 4  cse 1  sum 1  input 1  bias 4  bn 1  glob_avg 1\n"
        "parameters in the graph 444 of 444 (100.00%), tensors 11 of 11"
    )


@pytest.mark.parametrize(
    ("ops", "shape", "expected"),
    [
        (("input", "conv", "bias"), (10, 4), (1, 2)),
        (("input", "conv"), (10, 4), (1, None)),
        (("input", "conv", "bias"), (10, 4, 1, 1), (1, 2)),
        (("input", "conv", "bias"), (10, 4, 3, 3), None),
        (("input", "conv", "ln"), (10, 4), None),
    ],
)
def test_classifier(ops: tuple[str, ...], shape: tuple[int, ...], expected: object) -> None:
    nodes = tuple(Node(op, "p" if op != "input" else None, shape) for op in ops)
    edges = [(i, i + 1) for i in range(len(ops) - 1)]
    assert Graph(nodes, edges).classifiers == (() if expected is None else (expected,))


def test_sum_of_two_heads() -> None:
    ops = ("input", "conv", "bias", "conv", "bias", "sum")
    nodes = tuple(Node(op, f"p{i}", (10, 4)) for i, op in enumerate(ops))
    edges = [(0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 5)]
    assert Graph(nodes, edges).classifiers == ((1, 2), (3, 4))
    assert Graph(nodes, edges).num_classes == 10
