"""torch.fx graph of ATen operators -> graph of the fifteen primitives.

One pass in execution order. Every fx node gets a `Value`: which graph nodes its data comes from,
or, for a tensor that does not depend on the input, which parameters it is made of. Operators that
are a primitive add a node; all others hand on the sources of their operands, so that edges pass
through whatever has no primitive.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from ghn_init.graph.elementwise import ELEMENTWISE
from ghn_init.graph.graph import Graph
from ghn_init.graph.heads import last_layers
from ghn_init.graph.inputs import Inputs
from ghn_init.graph.isolation import without_gc
from ghn_init.graph.layers import LAYERS, fused_attention
from ghn_init.graph.passes import Pass, record
from ghn_init.graph.reading import Reading, live_nodes
from ghn_init.graph.squeeze_excitation import find_squeeze_excitation, op_name
from ghn_init.graph.surroundings import Surroundings
from ghn_init.graph.values import NOTHING, Value

_READERS = LAYERS | ELEMENTWISE


def trace_graph(
    model: nn.Module,
    inputs: Inputs,
    how: Pass = Pass(),  # noqa: B008
    surroundings: Surroundings | None = None,
) -> Graph:
    """Trace a model to its graph of primitives.

    Arguments:
        model: the model; it is left as it was.
        inputs: example inputs.
        how: how to run the model.
        surroundings: as in `record`.

    Raises:
        NeedsNumbers: if the model cannot run without numbers.
        GHNInitError: if the model does not run on the inputs.
    """
    with without_gc():
        recorded = record(model, inputs, how, surroundings)
        try:
            return build_graph(model, recorded)
        finally:
            for node in recorded.nodes:  # they refer to each other, and would stay for a while
                node.meta.clear()


def build_graph(model: nn.Module, recorded: fx.Graph) -> Graph:
    """The graph of primitives of a model's recorded operators."""
    live = live_nodes(recorded)
    read = Reading(model, *find_squeeze_excitation(live))
    for node in live:
        read.values[node] = _value(read, node)
    heads = last_layers(read, recorded.output_node(), getattr(model, "num_classes", None))
    _pool_before_classifier(read)
    edges = sorted((i, j) for j, before in enumerate(read.predecessors) for i in before)
    return Graph(
        tuple(read.nodes),
        edges,
        read.left(),
        read.shapes,
        heads=heads,
        factors=read.factors,
        normalized=frozenset(read.normalized),
        passages=read.passages,
    )


def _value(read: Reading, node: fx.Node) -> Value:
    if node.op == "placeholder":
        if node.meta.get("input"):
            return Value(sources=(0,))
        param = node.meta.get("param")
        return Value(params=(param,)) if param else NOTHING
    if node.target is operator.getitem:
        return read.values[node.args[0]]  # type: ignore[index]
    name = op_name(node)
    if name.startswith("aten::_scaled_dot_product"):
        return fused_attention(read, node)
    reader = _READERS.get(name)
    return reader(read, node) if reader else read.pass_through(node)


def _pool_before_classifier(read: Reading) -> None:
    """Where a global pool ends the model behind a 1x1 convolution, it goes in front of it.

    Averaging and a 1x1 convolution commute, and the classifier has to come last (SqueezeNet).
    """
    nodes, predecessors = read.nodes, read.predecessors
    end = len(nodes) - 1
    if nodes[end].op != "glob_avg" or predecessors[end] != (end - 1,):
        return
    weight = end - 2 if nodes[end - 1].op == "bias" else end - 1
    node = nodes[weight]
    if node.op != "conv" or node.shape is None or node.shape[2:] not in ((1, 1), ()):
        return
    predecessors.pop()
    nodes.insert(weight, nodes.pop())
    predecessors[weight + 1 :] = [tuple(p + 1 for p in b) for b in predecessors[weight + 1 :]]
    predecessors.insert(weight + 1, (weight,))
    read.passages = {
        (i + (i >= weight), j + (j >= weight)): passage
        for (i, j), passage in read.passages.items()
        if j != end
    }
