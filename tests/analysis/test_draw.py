"""`draw`: statistics, layout and pictures."""

from __future__ import annotations

import itertools
import json
import lzma
import statistics
from pathlib import Path

import networkx as nx
import pytest
import torch
from models import ConvNet, torchvision_model

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError, Graph, Node
from ghn_init.analysis import draw, graph_statistics
from ghn_init.analysis.plots.layout import Layout, layered
from ghn_init.analysis.plots.palette import PRIMITIVE_STYLES

RECORDED = json.loads(
    lzma.decompress((Path(__file__).parents[1] / "data" / "graphs.json.xz").read_bytes())
)
NOT_IN_TABLE_3 = {"vit_h_14", "regnet_y_128gf"}


def recorded(name: str) -> Graph:
    nodes = tuple(Node(op, param) for param, op in RECORDED[name]["nodes"])
    return Graph(nodes, [tuple(edge) for edge in RECORDED[name]["edges"]])


def chain(length: int) -> Graph:
    """A long residual network: a sum skips back three layers, again and again."""
    nodes = [Node("input")]
    nodes += [Node("sum") if i % 4 == 0 else Node("conv", f"c{i}.weight") for i in range(1, length)]
    skips = [(i - 4, i) for i in range(8, length, 4)]
    return Graph(tuple(nodes), sorted([(i, i + 1) for i in range(length - 1)] + skips))


def test_statistics_by_hand() -> None:
    """A square: every node has two neighbors; four pairs are adjacent, two are two apart."""
    square = Graph(tuple(Node("sum") for _ in range(4)), [(0, 1), (0, 2), (1, 3), (2, 3)])
    found = graph_statistics(square)
    assert (found.nodes, found.edges, found.degree) == (4, 4, 2.0)
    assert found.path == pytest.approx((4 * 1 + 2 * 2) / 6)


def test_table_3() -> None:
    """The 74 classifiers of Table 3: degree 2.5 +- 1.2 (1.9 to 9.1)."""
    degrees = [
        graph_statistics(recorded(name)).degree for name in RECORDED if name not in NOT_IN_TABLE_3
    ]
    assert len(degrees) == 74
    assert round(statistics.mean(degrees), 1) == 2.5
    assert round(statistics.stdev(degrees), 1) == 1.2
    assert round(min(degrees), 1) == 1.9
    assert round(max(degrees), 1) == 9.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECORDED if name not in NOT_IN_TABLE_3])
def test_traced_graphs_have_the_recorded_statistics(name: str) -> None:
    found = graph_statistics(ghn_init.trace(torchvision_model(name)))
    assert found == graph_statistics(recorded(name))


def test_golden_statistics(shared: Path) -> None:
    paths = sorted((shared / "golden" / "torchvision").glob("*net*.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        nodes = tuple(Node(op) for _, op, _ in content["nodes"])
        found = graph_statistics(Graph(nodes, [tuple(edge) for edge in content["edges"]]))
        assert found.degree == pytest.approx(content["avg_degree"]), path.name
        assert found.path == pytest.approx(content["avg_path"]), path.name


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "googlenet", "densenet169"])
def test_layout(name: str) -> None:
    graph = nx.DiGraph(RECORDED[name]["edges"])
    layout = layered(graph)
    assert len(set(layout.places)) == len(graph)  # no two nodes in one place
    along = [  # how far along the snake
        row * layout.columns + (x if row % 2 == 0 else layout.columns - 1 - x)
        for (x, _), row in zip(layout.places, layout.rows, strict=True)
    ]
    assert all(along[i] < along[j] for i, j in graph.edges)
    assert all(0 <= x < layout.columns for x, _ in layout.places)
    for a, b in itertools.pairwise(layout.row_tops):
        assert b < a
    straight = nx.dag_longest_path(graph)
    assert all(layout.places[i][1] == layout.row_tops[layout.rows[i]] for i in straight)
    assert_full(layout)


def assert_full(layout: Layout) -> None:
    """Every lane of every row has a node."""
    for row, top in enumerate(layout.row_tops):
        places = zip(layout.places, layout.rows, strict=True)
        lanes = {round(top - y, 6) for (_, y), r in places if r == row}
        assert lanes == set(range(len(lanes)))


@pytest.mark.parametrize("branches", [3, 6, 12])
def test_a_graph_of_many_branches_fills_the_page(branches: int) -> None:
    """Stages of parallel chains that all meet in a sum, as HRNet has them, each chain longer."""
    graph = nx.DiGraph()
    last = 0
    for _ in range(8):
        first, count = last, len(graph) or 1
        last = count + sum(10 + b for b in range(branches))
        for b in range(branches):
            chain = [first, *range(count, count + 10 + b), last]
            nx.add_path(graph, chain)
            count += 10 + b
    layout = layered(graph)
    assert_full(layout)
    assert 0.7 < layout.columns / (layout.height + 1) < 4


def test_every_primitive_looks_different() -> None:
    assert set(PRIMITIVE_STYLES) == set(ghn_init.PRIMITIVES)
    looks = [(s.color, s.marker) for s in PRIMITIVE_STYLES.values()]
    small_gray = ("#999999", "o")
    assert len(set(looks)) == len(looks)
    assert small_gray in looks


def tiny(classes: int) -> GHN:
    return GHN(GHNConfig("ghn3", 16, 1, 2, (16, 16, 4, 4), classes), "tiny")


def test_drawing() -> None:
    drawing = draw(ConvNet(), example_inputs=torch.zeros(2, 3, 8, 8))
    assert drawing.unpredicted == {}
    assert drawing.table().splitlines()[0] == (
        "ConvNet: 15 nodes, 16 edges, average degree 2.13, average path 3.37, "
        "100.00% of the parameters can be predicted"
    )
    content = json.loads(drawing.to_json())
    assert content["nodes"] == len(content["graph"]["nodes"]) == 15
    assert content["graph"]["edges"][0] == [0, 1]


@pytest.mark.parametrize("classes", [10, 1000])
def test_drawing_with_a_hypernetwork(classes: int) -> None:
    """Marked is what `apply` leaves: a head of other classes, and norms that it has not learned."""
    ghn, model = tiny(classes), ConvNet()
    model.stem.weight.requires_grad_(False)
    inputs = torch.zeros(2, 3, 8, 8)
    drawing = draw(model, ghn=ghn, example_inputs=inputs)
    _, report = ghn_init.apply(model, ghn=ghn, example_inputs=inputs, return_report=True)
    assert drawing.coverage == pytest.approx(report.coverage)
    assert drawing.unpredicted == report.left
    assert ("head.bias" in report.left) == (classes == 1000)
    assert "of the parameters predicted by tiny" in drawing.table()
    of_graph = draw(drawing.graph, ghn=ghn, head="predict")
    assert of_graph.unpredicted == {}


def test_dot(tmp_path: Path) -> None:
    drawing = draw(ConvNet(), ghn=tiny(1000), example_inputs=torch.zeros(2, 3, 8, 8))
    drawing.save(tmp_path / "graph.dot")
    lines = (tmp_path / "graph.dot").read_text().splitlines()
    assert lines[0] == 'digraph "ConvNet" {'
    assert lines[-1] == "}"
    assert sum("->" in line for line in lines) == 16
    assert '"conv\\nstem.weight\\n8x3x3x3", shape="ellipse", fillcolor="#0072B2"' in lines[3]
    assert sum('style="dashed"' in line for line in lines) == 2


@pytest.mark.parametrize("length", [20, 1000])
def test_picture(length: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawing = draw(chain(length), name=f"chain of {length}")
    figure = drawing.plot()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == (
        20 if length == 20 else len(layered(nx.DiGraph(chain(1000).edges)).row_tops)
    )
    if length == 1000:  # those of a small graph are slanted: their boxes overlap, they do not
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    page = figure.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 for b in boxes)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0].startswith("conv (")


def test_written_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawing = draw(chain(12))
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("A.PNG", b"\x89PNG")):
        drawing.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    drawing.save(tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


@pytest.mark.parametrize("name", ["a.pdf", "a", "missing/a.png"])
def test_a_path_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(GHNInitError, match="cannot write"):
        draw(chain(12)).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
