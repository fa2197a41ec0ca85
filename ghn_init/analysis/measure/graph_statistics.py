"""Size, degree and average path of a graph, as in Table 3 of the GHN-3 paper."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from ghn_init.graph.graph import Graph


@dataclass(frozen=True)
class GraphStatistics:
    """Statistics of a graph whose edges are taken as undirected, as in Table 3.

    Arguments:
        nodes: how many.
        edges: how many.
        degree: average number of neighbors of a node.
        path: average length of the shortest paths between all pairs of nodes, in edges.
    """

    nodes: int
    edges: int
    degree: float
    path: float


def graph_statistics(graph: Graph) -> GraphStatistics:
    """Statistics of a model's graph.

    Nodes that no path joins (there are none in a well-formed graph) do not count in the average.
    """
    undirected = as_networkx(graph).to_undirected()
    lengths = [
        length
        for source, reached in nx.all_pairs_shortest_path_length(undirected)
        for target, length in reached.items()
        if source != target
    ]
    nodes, edges = undirected.number_of_nodes(), undirected.number_of_edges()
    return GraphStatistics(
        nodes, edges, 2 * edges / max(1, nodes), sum(lengths) / max(1, len(lengths))
    )


def as_networkx(graph: Graph) -> nx.DiGraph:
    """The graph as networkx has it; its nodes are the indices."""
    directed = nx.DiGraph()
    directed.add_nodes_from(range(len(graph)))
    directed.add_edges_from(graph.edges)
    return directed
